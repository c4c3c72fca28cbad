"""The paths that answer in this project's own form: scores and texts."""

import dataclasses
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


def inference(answers: Answers) -> fastapi.APIRouter:
    """Returns the paths of scores and texts."""
    router = fastapi.APIRouter(tags=["inference"])

    @router.post("/v1/score", response_model_exclude_defaults=True)
    async def score(asked: schemas.ScoreRequest, client: fastapi.Request) -> schemas.ScoreAnswer:
        """Scores labels: their log-likelihoods, and the likeliest."""
        labels = tuple(asked.labels or ())
        request = checked_request(1, asked.text, asked.adapter, labels, asked.id, asked.image)
        deadline = answers.deadline(client, asked.deadline_ms)
        row = await answers.row(request, deadline)
        if row.options is None:
            who = "the adapter" if asked.adapter else "a base without an adapter"
            raise UserError(f"{who} has no labels of its own; name some in 'labels'")
        _, output = await answers.pending(row, deadline).result(client)
        found = answers.service.answer(row, output)
        return schemas.ScoreAnswer(**{k: v for k, v in found.items() if k != "line"})

    @router.post("/v1/generate", response_model=schemas.GenerateAnswer)
    async def generate(asked: schemas.GenerateRequest, client: fastapi.Request):
        """Generates a text: greedily, by draws, or by a beam search."""
        request = checked_request(1, asked.text, asked.adapter, (), asked.id, asked.image)
        request = dataclasses.replace(request, scores=False, beam_size=asked.beam_size)
        deadline = answers.deadline(client, asked.deadline_ms)
        row = await answers.row(request, deadline)
        draw = answers.draw(asked)
        if asked.beam_size > 1:
            if asked.stream or asked.temperature or asked.max_tokens:
                raise UserError("a beam search takes no stream, no temperature and no max_tokens")
            _, output = await answers.pending(row, deadline).result(client)
            answers.service.answer(row, output)
            ids = output.tolist()
            ended = answers.service.eos_id in ids
            ids = ids[: ids.index(answers.service.eos_id)] if ended else ids
            return _generated(answers, row, ids, "stop" if ended else "length")
        pending = answers.pending(row, deadline, draw)
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
