"""The budget matcher, its answers counted in the network itself."""

import jax
import pytest

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, split
from adalink_jax.models.parameters import abstract_params
from adalink_jax.tools.cost.budget import match
from tests.methods.toys import Norms, Stabilised
from tests.tiers import mostly_slow
from tests.tools.cost import formulas

# The smallest and the largest of each version of T5.
MODELS = ("mini", "tiny", "t5_1_1_base", "t5_1_1_xxl", "t5_1_0_11b")
BUDGETS = (8_192, 65_536, 524_288, 3_000_000)


def architecture(name):
    return gin_files.shipped(name, "adalink")[0]


def matched(model, name, budget):
    """The match of a method as its gin file has it."""
    return match(model, gin_files.shipped("mini", name)[1], budget)


def counted(model, method):
    """What the method trains, in the shapes that the network itself initialises."""
    trainable, _ = split(abstract_params(model, method)[0], method)
    if method.scope == "prompt_tuning":  # The re-parameterisation is not stored.
        return trainable["encoder"]["prompt_tuning"]["prompt"].size
    return sum(leaf.size for leaf in jax.tree.leaves(trainable))


@pytest.mark.parametrize("name", mostly_slow(MODELS, ["mini", "tiny"]))
def test_matches_are_what_the_network_counts(name):
    model = architecture(name)
    for method in ("adalink", "lora", "prompt_tuning"):
        found = matched(model, method, 524_288)
        assert found.meets and abs(found.parameters - 524_288) <= 5_242
        assert counted(model, found.method) == found.parameters


@pytest.mark.parametrize("name", mostly_slow(MODELS, ["mini", "tiny"]))
def test_a_budget_is_met_or_said_not_to_be(name):
    model = architecture(name)
    for budget in BUDGETS:
        for method in ("adalink", "lora", "prompt_tuning"):
            found = matched(model, method, budget)
            assert found.meets == (abs(found.parameters - budget) <= 0.01 * budget)
            assert found.parameters == formulas.stored_parameters(model, found.method)
        assert not matched(model, "full", budget).meets


@pytest.mark.slow
def test_what_cannot_be_met_says_the_nearest_size():
    model = architecture("t5_1_0_11b")
    found = matched(model, "lora", 8_192)
    # One layer's query at rank 1: 1,024 + 128 · 128.
    assert not found.meets and found.parameters == 17_408
    assert "cannot within 1%" in found.line() and "17,408" in found.line()
    assert matched(model, "adalink", 8_192).flags() == "--gin.adalink.AdaLink.rank=4"
    assert "whole model" in matched(model, "full", 8_192).line()


def test_a_method_nobody_has_heard_of_is_matched_or_refused():
    model = architecture("mini")
    # At rank 1, of each of three queries: 128 in, 128 out.
    found = match(model, Stabilised(rank=1, bottleneck_dropout=0.1), 7_700)
    assert found.method == Stabilised(rank=10, bottleneck_dropout=0.1)
    assert found.flags() == "--gin.toys.Stabilised.rank=10"
    # A part of what this one stores is of another size than its own.
    norms = match(model, Norms(), 20_000)
    assert norms.parameters == counted(model, norms.method) == 2 * 128 * 71 + 14 * 128
    assert match(model, Method(), 500).line().startswith("cannot within 1%: its only size is 0")


def test_lora_gives_up_layers_before_it_gives_up_kinds_of_layers():
    model = architecture("mini")
    # All of one layer's linears at rank 1: four of attention, three of the MLP.
    one_layer = 4 * (128 + 128) + 3 * (128 + 256)
    found = matched(model, "lora", one_layer).method
    assert found.rank == 1 and found.layers == (0,) and "mlp/*" in found.linears
    every = matched(model, "lora", 2 * model.num_encoder_layers * one_layer).method
    assert every.rank == 2 and every.layers is None
    assert every.alpha / every.rank == found.alpha / found.rank == 4.0  # As with RANK = 4.


def test_lora_gives_up_no_more_than_it_has():
    given = METHODS["lora"](rank=3, linears=("*attention/query", "mlp/*"), layers=(0, 2, 4, 6))
    variants = list(given.variants({"encoder": 7, "decoder": 2}))
    assert variants[0] == given and {v.linears for v in variants} == {
        given.linears, ("mlp/*",), ("*attention/query",),
    }  # fmt: skip
    assert [v.layers for v in variants[:4]] == [(0, 2, 4, 6), (0, 4, 6), (0, 6), (0,)]
    both = METHODS["lora"](rank=3, stacks=("encoder", "decoder"))
    assert next(v.layers for v in both.variants({"encoder": 7, "decoder": 2}) if v.layers) == (0,)


def test_flags_give_a_run_the_matched_method():
    found = matched(architecture("mini"), "lora", 4_096)
    bindings = [flag.removeprefix("--gin.").replace('"', "") for flag in found.flags().split(" --")]
    bindings = [binding.removeprefix("gin.") for binding in bindings]
    assert gin_files.shipped("mini", "lora", bindings)[1] == found.method


@pytest.mark.parametrize("budget", [0, 1.5])
def test_mistakes(budget):
    with pytest.raises(UserError, match="budget is"):
        matched(architecture("mini"), "adalink", budget)
