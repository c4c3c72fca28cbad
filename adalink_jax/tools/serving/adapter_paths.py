"""The paths of adapters: which there are, and what admins do with them."""

import asyncio
import functools
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import fastapi
from starlette.exceptions import HTTPException

from adalink_jax.errors import UserError
from adalink_jax.tools.serving import schemas
from adalink_jax.tools.serving.answers import Answers
from adalink_jax.tools.serving.shelf import Absent, Known

_PAGE = 1000  # Adapters of one list.


def adapters(answers: Answers, admin_token: str | None) -> fastapi.APIRouter:
    """Returns the paths of adapters.

    Args:
      answers: whose adapters they are.
      admin_token: what may load, unload and pin them; None for nobody.
    """

    def admin(authorization: Annotated[str | None, fastapi.Header()] = None) -> None:
        if admin_token is None:
            raise HTTPException(403, "this server was started without ADALINK_ADMIN_TOKEN")
        given = (authorization or "").encode()
        if not hmac.compare_digest(given, f"Bearer {admin_token}".encode()):
            raise HTTPException(401, "no admin token, or a wrong one")

    paths = _Adapters(answers)
    router = fastapi.APIRouter(prefix="/v1/adapters", tags=["adapters"])
    router.add_api_route("", paths.listed)
    router.add_api_route("/{name}", paths.one)
    for verb in (paths.load, paths.pin, paths.unload):
        router.add_api_route(
            f"/{{name}}/{verb.__name__}",
            verb,
            methods=["POST"],
            dependencies=[fastapi.Depends(admin)],
        )
    return router


class _Adapters:
    def __init__(self, answers: Answers):
        self._answers, self._service = answers, answers.service
        self._shelf = answers.service.shelf

    def _state(self, name: str, known: Known | None) -> schemas.AdapterState:
        modules = [] if known is None else list(known.modules.values())
        return schemas.AdapterState(
            name=name,
            in_host_memory=known is not None,
            on_device=not self._service.engine.loaded.isdisjoint(modules),
            pinned=name in self._shelf.pinned(),
            routes=None if known is None else list(known.modules),
            labels=None if known is None else _only(known.labels),
        )

    async def _on_device(self, function: Callable[[], Any]) -> None:
        await asyncio.wrap_future(self._answers.batcher.ask(function))

    async def listed(
        self,
        start: Annotated[int, fastapi.Query(ge=0)] = 0,
        limit: Annotated[int, fastapi.Query(ge=1, le=_PAGE)] = 100,
    ) -> schemas.AdapterList:
        """Some of the adapters on disk, and where they are."""
        names = await self._answers.in_thread(self._shelf.names)
        known = self._shelf.resident()
        some = [self._state(name, known.get(name)) for name in names[start : start + limit]]
        more = start + limit if start + limit < len(names) else None
        return schemas.AdapterList(adapters=some, total=len(names), next=more)

    async def one(self, name: str) -> schemas.AdapterState:
        """One adapter, which is read if it is not in memory."""
        return self._state(name, await self._answers.in_thread(self._shelf.read, name))

    async def load(self, name: str) -> schemas.AdapterState:
        """Reads an adapter, and puts it on the device."""
        known = await self._answers.in_thread(self._shelf.read, name)
        await self._on_device(functools.partial(self._service.load, known))
        return self._state(name, known)

    async def pin(self, name: str) -> schemas.AdapterState:
        """Loads an adapter, which then stays in memory until it is unloaded."""
        known = await self._answers.in_thread(self._shelf.pin, name)
        try:
            await self._on_device(functools.partial(self._service.load, known))
        except UserError:
            self._shelf.drop(name)
            raise
        return self._state(name, known)

    async def unload(self, name: str) -> schemas.AdapterState:
        """Takes an adapter out of memory; it stays on disk, and is read again when it is asked."""
        known = self._shelf.resident().get(name)
        if known is None and name not in await self._answers.in_thread(self._shelf.names):
            raise Absent(f"no adapter '{name}'")
        self._shelf.drop(name)
        if known is not None:
            modules = list(known.modules.values())
            await self._on_device(functools.partial(self._service.engine.unload, modules))
        return self._state(name, None)


def _only(labels: Mapping[str, Sequence[str]]) -> list[str]:
    return list(*labels.values()) if len(labels) == 1 else []
