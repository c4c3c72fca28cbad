"""The search over settings: what it asks for next, what it keeps, and that it goes on."""

import itertools
import json

import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.checkpoints import load_base
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods import autopeft as space_of_autopeft
from adalink_jax.tools.sweep import samplers, search, spaces
from adalink_jax.tools.sweep.samplers import Trial

BASE = "adalink_jax/bases/mini"
# Twelve switches and a size: what is on costs its weight, and the score is the sum of other ones.
COSTS = np.random.default_rng(1).integers(1, 100, 12)
GAINS = np.random.default_rng(2).random(12)
KNOBS = {f"s{i}": (False, True) for i in range(12)} | {"size": tuple(range(6))}
SPACE = spaces.Space(KNOBS, lambda values: values)
BY = sorted(samplers.SAMPLERS)


def made(choice) -> Trial:
    on, size = np.array(choice[:12]), choice[12]
    cost = 1 + int(on @ COSTS) * (1 + size)
    return Trial(choice, cost, float(on @ GAINS) * (1 - 0.5 ** (1 + size)))


def searched(by: str, seed: int, trials: int = 100) -> list[Trial]:
    seen: list[Trial] = []
    while len(seen) < trials:
        sampler = samplers.random if len(seen) < 20 else samplers.SAMPLERS[by]
        seen += map(made, sampler(SPACE, seen, lambda choice: True, 10, seed))
    return seen


def area(trials: list[Trial]) -> float:
    """The area of log-parameters × score that the front dominates, up to 10,000 parameters."""
    total, best, last = 0.0, 0.0, 0.0
    for one in samplers.front(trials):
        at = np.log10(one.parameters)
        total, best, last = total + best * (at - last), one.score, at
    return total + best * (4 - last)


def test_the_front_is_what_no_other_is_better_than_in_both():
    rng = np.random.default_rng(0)
    trials = [Trial((i,), int(p), float(s)) for i, (p, s) in enumerate(rng.integers(0, 9, (60, 2)))]
    front = samplers.front(trials)
    for one in trials:
        better = [
            other
            for other in trials
            if (other.parameters < one.parameters and other.score >= one.score)
            or (other.parameters == one.parameters and other.score > one.score)
        ]
        assert (one in front) == (not better)
    assert [one.parameters for one in front] == sorted(one.parameters for one in front)


@pytest.mark.parametrize("by", BY)
def test_the_same_seed_asks_for_the_same_and_nothing_twice(by):
    if by == "tpe":
        pytest.importorskip("optuna", reason="optuna is not installed")
    one, again, other = searched(by, 0, 40), searched(by, 0, 40), searched(by, 1, 40)
    assert one == again != other
    assert len({trial.choice for trial in one}) == len(one) == 40
    # Started again from any generation on, it asks for what it asked for.
    asked = samplers.SAMPLERS[by](SPACE, one[:30], lambda choice: True, 10, 0)
    assert asked == [trial.choice for trial in one[30:]]


def test_evolution_finds_more_than_chance():
    pairs = [[area(searched(by, seed)) for by in ("evolution", "random")] for seed in range(8)]
    assert sum(a > b for a, b in pairs) >= 7, pairs


def test_a_space_ends():
    small = spaces.given(["a=[1, 2]", "b=['x', 'y', 'z']"])
    for by in ("random", "evolution"):
        found = samplers.SAMPLERS[by](small, [], lambda choice: choice[0] == 0, 9, 0)
        assert sorted(found) == [(0, 0), (0, 1), (0, 2)]
    seen = [Trial(c, 1, 1.0) for c in itertools.product(range(2), range(3))]
    assert samplers.evolution(small, seen, lambda choice: True, 4, 0) == []


def test_choices_are_settings_of_gin():
    space = spaces.given(["RANK=[1, 4]", "lora.LoRA.layers=[None, (0,), (1, 2)]"])
    assert space.flags((1, 2)) == ["--gin.RANK=4", "--gin.lora.LoRA.layers=(1, 2)"]
    for wrong in ("RANK", "RANK=4", "RANK=[4]", "RANK=[4, 4]", "=[1, 2]", "RANK=[1, x]"):
        with pytest.raises(UserError):
            spaces.given([wrong])
    with pytest.raises(UserError, match="given twice"):
        spaces.given(["RANK=[1, 2]", "RANK=[3, 4]"])


def test_every_choice_of_autopeft_is_a_method_or_none():
    knobs = space_of_autopeft.knobs(2, 16)
    assert knobs["adapter"] == (0, 1, 2, 4, 8, 16) and list(knobs)[:2] == ["layer 0", "layer 1"]
    kinds = set()
    for values in itertools.product(*knobs.values()):
        chosen = dict(zip(knobs, values, strict=True))
        found = space_of_autopeft.settings(chosen)
        nothing = not any(values[:2]) or not (chosen["adapter"] or chosen["prefix"])
        assert (found is None) == nothing
        if found:
            method = METHODS["compose"](**{"parts": found["compose.Compose.parts"]})
            assert {part.layers for part in method.methods} == {
                tuple(i for i in range(2) if values[i])
            }
            kinds.add(method.scopes)
    assert len(kinds) == 3


def command(out, *more):
    files = "experiments/mini.gin,methods/lora.gin"
    short = ("--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4")
    given = ("--trials=5", "--first=2", "--generation=2", *short, "--gin.Evaluation.limit=8")
    return ["search", str(out), files, BASE, "mini_cola", *given, *more]


@pytest.fixture
def trained(monkeypatch):
    """Takes the place of the trainings; gives their scores and keeps their command lines."""
    lines = []

    def train_all(commands, jobs):
        lines.extend(commands)
        return 0

    monkeypatch.setattr(search.pool, "train_all", train_all)
    monkeypatch.setattr(search.Search, "trial", lambda self, choice: Trial(
        choice, self.parameters(choice), 10.0 * sum(choice)))  # fmt: skip
    return lines


def test_the_front_is_written_with_its_commands(tmp_path, capsys, trained):
    knobs = ("--choose=RANK=[1, 2, 4]", "--choose=lora.LoRA.layers=[(0,), (0, 1)]")
    assert cli.main(command(tmp_path, *knobs, "--seeds=0 1")) == 0
    assert "5 choices" in capsys.readouterr().out and len(trained) == 10
    text = (tmp_path / "report/search.md").read_text()
    assert "adalink train --gin_file=experiments/mini.gin --gin_file=methods/lora.gin" in text
    assert "--gin.RANK=1" in text and (tmp_path / "report/search.png").stat().st_size > 5000
    rows = (tmp_path / "report/search.csv").read_text().splitlines()
    assert len(rows) == 6
    assert len(set(map(tuple, trained))) == 10
    # What is counted before a training is what LoRA stores: R·Σ(Din + Dout) of a layer's matrices.
    config = load_base(BASE)[0]
    width, inner, mlp = config.emb_dim, config.num_heads * config.head_dim, config.mlp_dim
    kernels = 4 * (width + inner) + (len(config.mlp_activations) + 1) * (width + mlp)
    counts = {tuple(row.split('"')[1:4:2]) for row in rows[1:]}
    for said, parameters in counts:
        rank, layers = int(said.split("RANK=")[1][0]), said.count("1)") + 1
        assert int(parameters.replace(",", "")) == rank * layers * kernels


def test_what_cannot_be_searched_is_one_line(tmp_path, capsys, trained):
    for words, more in {
        "give --choose": (),
        "no choice can be trained": ("--choose=RANK=[1, 2]", "--most=3"),
        "--trials is 0": ("--choose=RANK=[1, 2]", "--trials=0"),
        "RANKS": ("--choose=RANKS=[1, 2]",),
        "RANK": ("--choose=RANK=[1, -2]",),
        "needs optuna": ("--choose=RANK=[1, 2, 3, 4]", "--by=tpe", "--first=1"),
    }.items():
        if words == "needs optuna":
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(__import__("sys").modules, "optuna", None)
                code = cli.main(command(tmp_path, *more))
        else:
            code = cli.main(command(tmp_path, *more))
        errors = capsys.readouterr().err
        assert code == 2 and errors.count("\n") == 1 and words in errors, (more, errors)


@pytest.mark.slow
def test_a_search_goes_on_where_it_ended(tmp_path, capsys):
    some = command(tmp_path / "one", "--choose=RANK=[1, 2, 4, 8]", "--trials=2")
    assert cli.main(some) == 0
    capsys.readouterr()
    more = command(tmp_path / "one", "--choose=RANK=[1, 2, 4, 8]", "--trials=3")
    assert cli.main(more) == 0
    assert capsys.readouterr().out.count("was finished") == 2
    adapters = (tmp_path / "one").rglob("adapter.json")
    ranks = {json.loads(path.read_text())["settings"]["rank"] for path in adapters}
    rows = (tmp_path / "one/report/search.csv").read_text().splitlines()[1:]
    assert len(ranks) == len(rows) == 3
