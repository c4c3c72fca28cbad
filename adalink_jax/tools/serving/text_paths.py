"""The paths that answer texts: scores, texts, and OpenAI's completions."""

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import fastapi
from fastapi import responses

from adalink_jax.errors import UserError
from adalink_jax.tools.serving import schemas
from adalink_jax.tools.serving.answers import Answers, Pending, event, status_of
from adalink_jax.tools.serving.gate import problem
from adalink_jax.tools.serving.requests import checked_request
from adalink_jax.tools.serving.service import Row

# The model of OpenAI's paths that is no adapter.
BASE_MODEL = "base"


def inference(answers: Answers) -> fastapi.APIRouter:
    """Returns the paths of scores and texts."""
    router = fastapi.APIRouter(tags=["inference"])

    @router.post("/v1/score", response_model_exclude_defaults=True)
    async def score(asked: schemas.ScoreRequest, client: fastapi.Request) -> schemas.ScoreAnswer:
        """Scores labels: their log-likelihoods, and the likeliest."""
        labels = tuple(asked.labels or ())
        row = await answers.row(checked_request(1, asked.text, asked.adapter, labels, asked.id))
        if row.options is None:
            raise UserError("the adapter has no labels of its own; name some in 'labels'")
        _, output = await answers.pending(row, asked.deadline_ms).result(client)
        found = answers.service.answer(row, output)
        return schemas.ScoreAnswer(**{k: v for k, v in found.items() if k != "line"})

    @router.post("/v1/generate", response_model=schemas.GenerateAnswer)
    async def generate(asked: schemas.GenerateRequest, client: fastapi.Request):
        """Generates a text: greedily, by draws, or by a beam search."""
        request = checked_request(1, asked.text, asked.adapter, (), asked.id)
        row = await answers.row(
            dataclasses.replace(request, scores=False, beam_size=asked.beam_size)
        )
        draw = answers.draw(asked)
        if asked.beam_size > 1:
            if asked.stream or asked.temperature or asked.max_tokens:
                raise UserError("a beam search takes no stream, no temperature and no max_tokens")
            _, output = await answers.pending(row, asked.deadline_ms).result(client)
            answers.service.answer(row, output)
            ids = output.tolist()
            ended = answers.service.eos_id in ids
            ids = ids[: ids.index(answers.service.eos_id)] if ended else ids
            return _generated(answers, row, ids, "stop" if ended else "length")
        pending = answers.pending(row, asked.deadline_ms, draw)
        if asked.stream:
            events = _events(answers, pending, row, client.state.request_id)
            return responses.StreamingResponse(events, media_type="text/event-stream")
        return _generated(answers, row, *await pending.result(client))

    return router


def _generated(answers: Answers, row: Row, ids: list[int], reason: Any) -> schemas.GenerateAnswer:
    return schemas.GenerateAnswer(
        adapter=row.request.adapter,
        text=answers.service.text(ids),
        finish_reason=reason,
        tokens=len(ids),
        truncated_tokens=row.dropped,
        id=row.request.id,
    )


async def _events(answers: Answers, pending: Pending, row: Row, name: str) -> AsyncIterator[str]:
    async for piece, result in answers.pieces(pending):
        if isinstance(result, Exception):
            yield f"event: error\n{event(problem(status_of(result), str(result), name))}"
            return
        if piece:
            yield event({"text": piece})
        if result is not None:
            ended = {"finish_reason": result, "tokens": pending.job.length}
            yield event(ended | ({"id": row.request.id} if row.request.id is not None else {}))


def openai(answers: Answers) -> fastapi.APIRouter:
    """Returns OpenAI's paths."""
    router = fastapi.APIRouter(tags=["OpenAI"])

    @router.post("/v1/completions", response_model=schemas.Completion)
    async def completions(asked: schemas.CompletionRequest, client: fastapi.Request):
        """OpenAI's completions; a model is an adapter, or the base."""
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        adapter = None if asked.model == BASE_MODEL else asked.model
        rows = []
        for prompt in prompts:
            request = checked_request(1, prompt, adapter, (), None)
            rows.append(await answers.row(dataclasses.replace(request, scores=False)))
        draw = answers.draw(asked)
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        about["model"] = asked.model
        if asked.stream:
            if len(rows) > 1:
                raise UserError("one prompt is streamed at a time")
            pending = answers.pending(rows[0], None, draw)
            events = _chunks(answers, pending, about, client.state.request_id)
            return responses.StreamingResponse(events, media_type="text/event-stream")
        waiting: list[Pending] = []
        try:
            for row in rows:
                waiting.append(answers.pending(row, None, draw))
            found = [await pending.result(client) for pending in waiting]
        finally:
            for pending in waiting:
                answers.batcher.cancel(pending.job)
        choices = [
            schemas.Choice(index=i, text=answers.service.text(ids), finish_reason=reason)
            for i, (ids, reason) in enumerate(found)
        ]
        read, made = sum(len(row.tokens) for row in rows), sum(len(ids) for ids, _ in found)
        usage = schemas.Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)
        return schemas.Completion(**about, choices=choices, usage=usage)

    @router.get("/v1/models")
    async def models() -> schemas.Models:
        """The base and all adapters, as models."""
        names = [BASE_MODEL, *await answers.in_thread(answers.service.shelf.names)]
        return schemas.Models(data=[schemas.Model(id=name) for name in names])

    return router


async def _chunks(answers: Answers, pending: Pending, about: dict, name: str) -> AsyncIterator[str]:
    async for piece, result in answers.pieces(pending):
        if isinstance(result, Exception):
            yield event(problem(status_of(result), str(result), name))
            return
        choice = schemas.Choice(index=0, text=piece, finish_reason=result)
        yield event(schemas.Completion(**about, choices=[choice]).model_dump())
    yield "data: [DONE]\n\n"
