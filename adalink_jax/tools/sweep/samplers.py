"""Which choices a search tries next, by what it has seen: few parameters and a high score.

A sampler depends on its arguments alone. So a search that is started again asks for the same
choices, finds their trainings finished, and goes on where it ended.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from adalink_jax.errors import UserError, install
from adalink_jax.tools.sweep.spaces import Choice, Space

# At least so many of what was seen, the best, have children.
_PARENTS = 8
# So many draws in a row without a new choice are the end of a space.
_PATIENCE = 1000


@dataclasses.dataclass(frozen=True)
class Trial:
    """A choice that was trained.

    Attributes:
      choice: the choice.
      parameters: the number of parameters that its adapter stores.
      score: its score in percent; the higher, the better.
    """

    choice: Choice
    parameters: int
    score: float

    def dominates(self, other: "Trial") -> bool:
        """Returns whether this one is no worse in both, and better in one."""
        no_worse = self.parameters <= other.parameters and self.score >= other.score
        return no_worse and (self.parameters, self.score) != (other.parameters, other.score)


# (space, what was seen, which choices may be trained, how many, seed) → new choices
Sampler = Callable[[Space, Sequence[Trial], Callable[[Choice], bool], int, int], list[Choice]]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that no other dominates, by parameters ascending (the Pareto front)."""
    best = [one for one in trials if not any(other.dominates(one) for other in trials)]
    return sorted(best, key=lambda one: (one.parameters, one.choice))


def random(
    space: Space, seen: Sequence[Trial], admits: Callable[[Choice], bool], count: int, seed: int
) -> list[Choice]:
    """Draws choices uniformly that were not seen; fewer than asked for where few are left."""
    rng = np.random.default_rng((seed, len(seen)))
    sizes = [len(values) for values in space.knobs.values()]
    return _new(lambda: tuple(map(int, rng.integers(sizes))), seen, admits, count)


def evolution(
    space: Space, seen: Sequence[Trial], admits: Callable[[Choice], bool], count: int, seed: int
) -> list[Choice]:
    """Draws children of good trials, as NSGA-II does (Deb et al. 2002).

    The best quarter has children: of the better fronts, and in a front of the emptier places. Each
    parent wins a tournament of two among these. A child takes each knob from one of its parents;
    then each changes with probability 1 / knobs, as often to a neighbouring value as to any.
    """
    if not seen:
        return random(space, seen, admits, count, seed)
    rng = np.random.default_rng((seed, len(seen)))
    sizes = [len(values) for values in space.knobs.values()]
    ranked = _ranked(seen)[: max(_PARENTS, len(seen) // 4)]

    def parent() -> Choice:
        return ranked[int(rng.integers(len(ranked), size=2).min())].choice

    def child() -> Choice:
        pairs = zip(parent(), parent(), strict=True)
        values = [pair[int(rng.integers(2))] for pair in pairs]
        for knob, size in enumerate(sizes):
            if rng.random() < 1 / len(sizes):
                near = values[knob] + (1 if rng.random() < 0.5 else -1)
                anywhere = int(rng.integers(size))
                values[knob] = near if rng.random() < 0.5 and 0 <= near < size else anywhere
        return tuple(values)

    return _new(child, seen, admits, count)


def tpe(
    space: Space, seen: Sequence[Trial], admits: Callable[[Choice], bool], count: int, seed: int
) -> list[Choice]:
    """Asks optuna's multi-objective TPE, which is told of all that was seen.

    Raises:
      UserError: optuna is not installed.
    """
    try:
        import optuna  # pyright: ignore[reportMissingImports]: optional
    except ImportError:
        raise UserError(f"--by tpe needs optuna: {install('search')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1)
        for name, values in space.knobs.items()
    }
    sampler = optuna.samplers.TPESampler(seed=seed + len(seen), constant_liar=True)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    for one in seen:
        params = dict(zip(names, one.choice, strict=True))
        values = [float(one.parameters), one.score]
        study.add_trial(
            optuna.create_trial(params=params, distributions=dict(names), values=values)
        )

    def asked() -> Choice:
        return tuple(study.ask(dict(names)).params.values())

    return _new(asked, seen, admits, count)


SAMPLERS: dict[str, Sampler] = {"random": random, "evolution": evolution, "tpe": tpe}


def _new(
    draw: Callable[[], Choice],
    seen: Sequence[Trial],
    admits: Callable[[Choice], bool],
    count: int,
) -> list[Choice]:
    """Draws until there are `count` choices that are new and admitted, or none comes any more."""
    known, found, idle = {one.choice for one in seen}, [], 0
    while len(found) < count and idle < _PATIENCE:
        choice, idle = draw(), idle + 1
        if choice not in known and admits(choice):
            known.add(choice)
            found.append(choice)
            idle = 0
    return found


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Returns trials, the best first: by front, then by how far their neighbours in it are."""
    left, ranked = list(trials), []
    while left:
        best = front(left)
        scores = [one.score for one in best]
        sizes = np.log1p([one.parameters for one in best])
        spans = max(np.ptp(scores), 1e-9), max(np.ptp(sizes), 1e-9)
        distance = np.full(len(best), np.inf)
        for i in range(1, len(best) - 1):
            distance[i] = abs(scores[i + 1] - scores[i - 1]) / spans[0]
            distance[i] += abs(sizes[i + 1] - sizes[i - 1]) / spans[1]
        ranked += [best[i] for i in np.argsort(-distance, kind="stable")]
        left = [one for one in left if one not in best]
    return ranked
