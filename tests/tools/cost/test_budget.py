"""The budget matcher, its answers counted in the network itself for every public size."""

import jax
import pytest

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.methods.base import split
from adalink_jax.models.parameters import abstract_params
from adalink_jax.tools.cost.budget import match

# FLAN's architectures are those of T5 1.1.
MODELS = sorted(
    path.stem
    for path in (gin_files.gin_folder() / "models").glob("*.gin")
    if not path.stem.startswith("flan")
)
BUDGETS = (8_192, 65_536, 524_288, 3_000_000)


def architecture(name):
    return gin_files.shipped(name, "adalink")[0]


def counted(model, method):
    """What the method trains, in the shapes that the network itself initialises."""
    trainable, _ = split(abstract_params(model, method)[0], method)
    if method.scope == "prompt_tuning":  # The re-parameterisation is not stored.
        return trainable["encoder"]["prompt_tuning"]["prompt"].size
    return sum(leaf.size for leaf in jax.tree.leaves(trainable))


@pytest.mark.parametrize(
    "name",
    [m if m in ("mini", "tiny") else pytest.param(m, marks=pytest.mark.slow) for m in MODELS],
)
def test_matches_are_what_the_network_counts(name):
    model = architecture(name)
    for method in ("adalink", "lora", "prompt_tuning"):
        found = match(model, method, 524_288)
        assert found.meets and abs(found.parameters - 524_288) <= 5_242
        assert counted(model, found.method) == found.parameters


@pytest.mark.parametrize("name", MODELS)
def test_a_budget_is_met_or_said_not_to_be(name):
    model = architecture(name)
    for budget in BUDGETS:
        for method in ("adalink", "lora", "prompt_tuning"):
            found = match(model, method, budget)
            assert found.meets == (abs(found.parameters - budget) <= 0.01 * budget)
        assert not match(model, "full", budget).meets


def test_what_cannot_be_met_says_the_nearest_size():
    model = architecture("t5_1_0_11b")
    found = match(model, "lora", 8_192)
    # One layer's query at rank 1: 1,024 + 128 · 128.
    assert not found.meets and found.parameters == 17_408
    assert "cannot within 1%" in found.line() and "17,408" in found.line()
    assert match(model, "adalink", 8_192).flags() == "--gin.RANK=4"
    assert "whole model" in match(model, "full", 8_192).line()


def test_lora_gives_up_layers_before_it_gives_up_kinds_of_layers():
    model = architecture("mini")
    # All of one layer's linears at rank 1: four of attention, three of the MLP.
    one_layer = 4 * (128 + 128) + 3 * (128 + 256)
    found = match(model, "lora", one_layer).method
    assert found.rank == 1 and found.layers == (0,) and "mlp/*" in found.linears
    every = match(model, "lora", 2 * model.num_encoder_layers * one_layer).method
    assert every.rank == 2 and every.layers is None


def test_flags_give_a_run_the_matched_method():
    found = match(architecture("mini"), "lora", 4_096)
    bindings = [flag.removeprefix("--gin.").replace('"', "") for flag in found.flags().split(" --")]
    bindings = [binding.removeprefix("gin.") for binding in bindings]
    assert gin_files.shipped("mini", "lora", bindings)[1] == found.method


@pytest.mark.parametrize(("name", "budget"), [("adalink", 0), ("adalink", 1.5), ("lorra", 8)])
def test_mistakes(name, budget):
    with pytest.raises(UserError, match="budget is|lora"):
        match(architecture("mini"), name, budget)
