"""Several methods at once: their hooks run in the order of the parts.

Published combinations are gin files: DePT, ADePT and MAM. Where order matters, it is that of
`parts`: AdaLink before a prompt does not see the prompt's vectors.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import jax
from flax import traverse_util
from jaxtyping import Float

from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import (
    Array,
    Context,
    Memory,
    Method,
    Params,
    RateFactors,
    Site,
    merge,
)
from adalink_jax.values import Says

Parts = Annotated[
    tuple[Method | Mapping[str, Any], ...],
    Says("a list of methods, such as (@adalink.AdaLink(), @prompt_tuning.PromptTuning())"),
]
_STARTS = ("base", "near", "elsewhere")


@dataclasses.dataclass(frozen=True)
class Compose(Method):
    """Methods that act together, each on parameters of its own.

    Attributes:
      parts: the methods; each a class of its own, with the same number of routes. A mapping stands
        for a method, with its name as "method" beside its settings; adapters are stored so.
      rate_factors: factors of the learning rate by shell pattern over the leaves' names, beside
        those of the parts.
    """

    parts: Parts
    rate_factors: RateFactors = None

    scope: ClassVar[str] = "compose"
    training_only: ClassVar[tuple[str, ...]] = ("rate_factors",)

    def __post_init__(self):
        super().__post_init__()
        parts = tuple(one if isinstance(one, Method) else _made(one) for one in self.parts)
        object.__setattr__(self, "parts", parts)
        acting = [part for part in parts if type(part) is not Method]
        names = [part.scope for part in acting]
        if wrong := [part for part in acting if part.trains_base or isinstance(part, Compose)]:
            raise UserError(f"Compose.parts has {wrong[0].scope!r}, which cannot be a part")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"Compose.parts has {twice[0]!r} twice; their parameters have one name")
        if len({part.routes for part in acting}) > 1:
            told = ", ".join(f"{part.scope} {part.routes}" for part in acting)
            raise UserError(f"Compose.parts have different numbers of routes: {told}")
        behind = [part.scope for stack in ("encoder", "decoder") for part in acting
                  if part.memory_positions(stack)]  # fmt: skip
        if len(set(behind)) > 1:
            raise UserError(f"Compose.parts {' and '.join(behind)} both stand before the text")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The parts, all as methods."""
        return tuple(part for part in self.parts if isinstance(part, Method))

    @property
    def routes(self) -> int:
        """K, which all parts have."""
        return max(part.routes for part in self.methods)

    @property
    def routed(self) -> bool:
        return all(part.routed for part in self.methods)

    @property
    def needs_images(self) -> bool:
        """Whether a part does."""
        return any(part.needs_images for part in self.methods)

    @property
    def start(self) -> str:
        """That of the part that is farthest from the base."""
        return max((part.start for part in self.methods), key=_STARTS.index)

    @property
    def scopes(self) -> tuple[str, ...]:
        return tuple(scope for part in self.methods for scope in part.scopes)

    @property
    def longest_input(self) -> int | None:
        """The least of its parts."""
        return min((n for part in self.methods if (n := part.longest_input)), default=None)

    def lengthened(self, adapter: Params, length: int) -> tuple[Method, Params]:
        parts = []
        for part in self.methods:
            longer, adapter = part.lengthened(adapter, length)
            parts.append(longer)
        return self._with(parts), adapter

    def part(self, name: str) -> Method | None:
        return next((part for part in (self, *self.methods) if part.scope == name), None)

    def settings(self) -> dict[str, Any]:
        parts = tuple({"method": part.scope, **part.settings()} for part in self.methods)
        return {"parts": parts, "rate_factors": self.rate_factors}

    def with_routes(self, routes: int) -> Self:
        return self._with([part.with_routes(routes) for part in self.methods])

    def gates(self, stack: str, num_layers: int) -> tuple:
        """Returns the gates of each part."""
        return tuple(part.gates(stack, num_layers) for part in self.methods)

    def where(self, gate: Any) -> Method:
        return self._with([part.where(on) for part, on in zip(self.methods, gate, strict=True)])

    def _with(self, parts: Sequence[Method]) -> Self:
        return dataclasses.replace(self, parts=tuple(parts))

    def _own(self, ctx: Context) -> list[tuple[Method, Context]]:
        """Returns each part with its own gate and what its own `prepare` returned."""
        count = len(self.parts)
        gates = (ctx.gate,) * count if isinstance(ctx.gate, float) else ctx.gate
        shared = (None,) * count if ctx.shared is None else ctx.shared
        return [
            (part, dataclasses.replace(ctx, gate=gate, shared=own))
            for part, gate, own in zip(self.methods, gates, shared, strict=True)
        ]

    def prepare(self, ctx: Context) -> tuple:
        return tuple(part.prepare(ctx) for part in self.methods)

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T2 D"], Context]:
        for part in self.methods:
            x, ctx = part.inputs(x, ctx)
        return x, ctx

    def norm(self, y: Float[Array, "B T D"], site: Site, ctx: Context) -> Float[Array, "B T D"]:
        for part, own in self._own(ctx):
            y = part.norm(y, site, own)
        return y

    def operand(
        self, x: Float[Array, "B T Din"], site: Site, ctx: Context
    ) -> Float[Array, "B T Din"]:
        for part, own in self._own(ctx):
            x = part.operand(x, site, own)
        return x

    def linear(
        self,
        x: Float[Array, "B T Din"],
        y: Float[Array, "B T Dout"],
        kernel: Callable[[], Float[Array, "Din Dout"]],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        for part, own in self._own(ctx):
            y = part.linear(x, y, kernel, site, own)
        return y

    def keys_values(
        self,
        x: Float[Array, "B Tq D"],
        k: Float[Array, "B T N C"],
        v: Float[Array, "B T N C"],
        site: Site,
        ctx: Context,
    ) -> Memory | None:
        found = [part.keys_values(x, k, v, site, own) for part, own in self._own(ctx)]
        memories = [memory for memory in found if memory is not None]
        if len(memories) > 1:
            raise UserError("two of Compose.parts put keys in front of one attention block")
        return memories[0] if memories else None

    def memory_positions(self, stack: str) -> int:
        return max(part.memory_positions(stack) for part in self.methods)

    def attended(
        self,
        q: Float[Array, "B Tq N C"],
        y: Float[Array, "B Tq N C"],
        project: Callable[..., tuple[Array, Array]],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B Tq N C"]:
        for part, own in self._own(ctx):
            y = part.attended(q, y, project, site, own)
        return y

    def sublayer(
        self,
        y: Float[Array, "B T D"],
        x: Float[Array, "B T D"],
        residual: Float[Array, "B T D"],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T D"]:
        for part, own in self._own(ctx):
            y = part.sublayer(y, x, residual, site, own)
        return y

    def layer(self, x: Float[Array, "B T D"], site: Site, ctx: Context) -> Float[Array, "B T D"]:
        for part, own in self._own(ctx):
            x = part.layer(x, site, own)
        return x

    def trainable(self, name: str) -> bool:
        return any(part.trainable(name) for part in self.methods)

    def has_routes(self, name: str) -> bool:
        return any(part.has_routes(name) for part in self.methods)

    def rate_factor(self, name: str) -> float:
        own = (part.rate_factor(name) for part in self.methods if part.owns(name))
        return super().rate_factor(name) * next(own, 1.0)

    def check_rate_factors(self, names: Sequence[str]) -> None:
        super().check_rate_factors(names)
        for part in self.methods:
            part.check_rate_factors([name for name in names if part.owns(name)])

    def texts(self, labels: Sequence[str]) -> tuple[str, ...]:
        wanted = [texts for part in self.methods if (texts := part.texts(labels))]
        if any(texts != wanted[0] for texts in wanted):
            raise UserError("two of Compose.parts start from different texts")
        return wanted[0] if wanted else ()

    def initialise(
        self, adapter: Params, base: Params, token_ids: Sequence[Sequence[int]], key: Array
    ) -> Params:
        keys = jax.random.split(key, len(self.parts))
        parts = zip(self.methods, self._divided(adapter), keys, strict=True)
        return _joined(part.initialise(own, base, token_ids, one) for part, own, one in parts)

    def export(self, adapter: Params) -> tuple[Method, Params]:
        return self._each(adapter, lambda part, own: part.export(own))

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        method, tree = self._each(adapter, lambda part, own: part.for_inference(own))
        return dataclasses.replace(method, rate_factors=None), tree

    def _each(
        self, adapter: Params, change: Callable[[Method, Params], tuple[Method, Params]]
    ) -> tuple[Self, Params]:
        changed = [change(*one) for one in zip(self.methods, self._divided(adapter), strict=True)]
        return self._with([part for part, _ in changed]), _joined(tree for _, tree in changed)

    def _divided(self, adapter: Params) -> list[Params]:
        """Returns the tree of each part, with the leaves of the base that it unlocks."""
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        own = [{n: leaf for n, leaf in flat.items() if p.trainable(n)} for p in self.methods]
        return [traverse_util.unflatten_dict(tree, sep="/") for tree in own]

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Folds one part after the other.

        Raises:
          UserError: a part cannot be folded, or several change the linear layers, where the result
            depends on what each sees of the others.
        """
        linear = [
            part.scope
            for part in self.methods
            if type(part).linear is not Method.linear or type(part).operand is not Method.operand
        ]
        if len(linear) > 1:
            raise UserError(f"{' and '.join(linear)} together cannot be folded into linear layers")

        def has_own(pair: tuple[Method, Params]) -> bool:
            return any(map(pair[0].owns, traverse_util.flatten_dict(dict(pair[1]), sep="/")))

        folded, pairs = dict(base), zip(self.methods, self._divided(adapter), strict=True)
        for part, own in sorted(pairs, key=has_own):  # What is unlocked first: others go into it.
            folded = part.fold(folded, own, route)
        return folded


def _joined(trees) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for tree in trees:
        joined = merge(joined, tree)
    return joined


def _made(settings: Mapping[str, Any]) -> Method:
    """Returns the method that a mapping stands for."""
    from adalink_jax.methods import METHODS  # It imports this module.

    name = settings.get("method")
    if name not in METHODS:
        raise UserError(
            f"Compose.parts has a method {name!r}; there are {', '.join(METHODS)}"
            f"{nearest(str(name), METHODS)}"
        )
    kind = METHODS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    own = {key: value for key, value in settings.items() if key != "method"}
    if unknown := sorted(own.keys() - fields):
        raise UserError(f"Compose.parts: {name} has no {unknown[0]!r}{nearest(unknown[0], fields)}")
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if lacking := [field for field in missing if field not in own]:
        raise UserError(f"Compose.parts: {name} has no {lacking[0]}")
    return kind(**own)
