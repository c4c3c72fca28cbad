"""OpenAI's paths: completions, and chats of one message, which may show a picture."""

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import fastapi
from fastapi import responses

from adalink_jax.errors import UserError
from adalink_jax.tools.serving import schemas
from adalink_jax.tools.serving.answers import Answers, Pending, event, status_of
from adalink_jax.tools.serving.gate import problem
from adalink_jax.tools.serving.requests import checked_request
from adalink_jax.tools.serving.service import Row

# The model that is no adapter.
BASE_MODEL = "base"


def openai(answers: Answers) -> fastapi.APIRouter:
    """Returns OpenAI's paths."""
    router = fastapi.APIRouter(tags=["OpenAI"])

    @router.post("/v1/completions", response_model=schemas.Completion)
    async def completions(asked: schemas.CompletionRequest, client: fastapi.Request):
        """OpenAI's completions; a model is an adapter, or the base."""
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        rows = [await _row(answers, client, asked.model, prompt) for prompt in prompts]
        about = _about(asked.model, "cmpl")

        def piece(text: str, reason: Any) -> schemas.Completion:
            choice = schemas.Choice(index=0, text=text, finish_reason=reason)
            return schemas.Completion(**about, choices=[choice])

        if asked.stream:
            if len(rows) > 1:
                raise UserError("one prompt is streamed at a time")
            return _streamed(answers, asked, rows[0], piece, client)
        found, usage = await _whole(answers, asked, rows, client)
        choices = [
            schemas.Choice(index=i, text=text, finish_reason=reason)
            for i, (text, reason) in enumerate(found)
        ]
        return schemas.Completion(**about, choices=choices, usage=usage)

    @router.post(
        "/v1/chat/completions",
        response_model=schemas.ChatCompletion,
        response_model_exclude_none=True,
    )
    async def chat(asked: schemas.ChatRequest, client: fastapi.Request):
        """OpenAI's chat completions of one message, which may show one picture."""
        [message] = asked.messages
        if len(images := message.images) > 1:
            raise UserError(f"the message has {len(images)} images; a request shows one at most")
        row = await _row(answers, client, asked.model, message.text, *images)
        about = _about(asked.model, "chatcmpl")

        def piece(text: str, reason: Any) -> schemas.ChatCompletion:
            choice = schemas.ChatChoice(delta=schemas.Said(content=text), finish_reason=reason)
            kind = "chat.completion.chunk"
            return schemas.ChatCompletion(**about, object=kind, choices=[choice])

        if asked.stream:
            return _streamed(answers, asked, row, piece, client)
        [(text, reason)], usage = await _whole(answers, asked, [row], client)
        choice = schemas.ChatChoice(message=schemas.Said(content=text), finish_reason=reason)
        return schemas.ChatCompletion(**about, choices=[choice], usage=usage)

    @router.get("/v1/models")
    async def models() -> schemas.Models:
        """The base and all adapters, as models."""
        names = [BASE_MODEL, *await answers.in_thread(answers.service.shelf.names)]
        return schemas.Models(data=[schemas.Model(id=name) for name in names])

    return router


_Asked = schemas.CompletionRequest | schemas.ChatRequest


async def _row(
    answers: Answers, client: fastapi.Request, model: str, text: str, image: str | None = None
) -> Row:
    adapter = None if model == BASE_MODEL else model
    request = checked_request(1, text, adapter, (), None, image)
    request = dataclasses.replace(request, scores=False)
    return await answers.row(request, answers.deadline(client))


def _about(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


async def _whole(
    answers: Answers, asked: _Asked, rows: list[Row], client: fastapi.Request
) -> tuple[list[tuple[str, Any]], schemas.Usage]:
    """Returns the rows' texts, each with why it ended, and the numbers of tokens."""
    draw = answers.draw(asked)
    waiting: list[Pending] = []
    try:
        for row in rows:
            waiting.append(answers.pending(row, answers.deadline(client), draw))
        found = [await pending.result(client) for pending in waiting]
    finally:
        for pending in waiting:
            answers.batcher.cancel(pending.job)
    read, made = sum(map(answers.service.tokens_of, rows)), sum(len(ids) for ids, _ in found)
    usage = schemas.Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)
    return [(answers.service.text(ids), reason) for ids, reason in found], usage


def _streamed(
    answers: Answers, asked: _Asked, row: Row, piece: Callable, client: fastapi.Request
) -> responses.StreamingResponse:
    pending = answers.pending(row, answers.deadline(client), answers.draw(asked))
    chunks = _chunks(answers, pending, piece, client.state.request_id)
    return responses.StreamingResponse(chunks, media_type="text/event-stream")


async def _chunks(
    answers: Answers, pending: Pending, piece: Callable, name: str
) -> AsyncIterator[str]:
    async for text, result in answers.pieces(pending):
        if isinstance(result, Exception):
            yield event(problem(status_of(result), str(result), name))
            return
        yield event(piece(text, result).model_dump())
    yield "data: [DONE]\n\n"
