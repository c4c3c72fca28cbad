"""The closed formulas against the step's jaxpr, XLA's own count, and arithmetic by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost import counts, programs
from adalink_jax.tools.cost.counts import Shape, traced_flops, traced_step_flops
from tests.methods.toys import Stabilised
from tests.tiers import mostly_slow
from tests.tools.cost import formulas

# Every size differs, so that none can stand for another.
SMALL = T5Config(
    vocab_size=89, emb_dim=14, num_heads=3, num_encoder_layers=3, num_decoder_layers=2,
    head_dim=5, mlp_dim=22, mlp_activations=("gelu", "linear"), dropout_rate=0.1,
)  # fmt: skip
SHAPE = Shape(batch=2, inputs=11, targets=7)

VARIANTS = {
    "base": Method(),
    "full": METHODS["full"](),
    "adalink": METHODS["adalink"](rank=4),
    "adalink_both": METHODS["adalink"](rank=4, stacks=("encoder", "decoder")),
    "adalink_decoder": METHODS["adalink"](rank=4, stacks=("decoder",)),
    "adalink_routes": METHODS["adalink"](rank=4, routes=5),
    "lora": METHODS["lora"](rank=4),
    "lora_last_layer": METHODS["lora"](rank=4, layers=(2,)),
    "lora_middle_query": METHODS["lora"](rank=2, linears=("attention/query",), layers=(1,)),
    "lora_value": METHODS["lora"](rank=2, linears=("attention/value",)),
    "lora_out": METHODS["lora"](rank=2, linears=("attention/out",), layers=(0,)),
    "lora_wo": METHODS["lora"](rank=2, linears=("mlp/wo",), layers=(0,)),
    "lora_gate": METHODS["lora"](rank=2, linears=("mlp/wi_1",), layers=(2,)),
    "lora_decoder": METHODS["lora"](rank=3, stacks=("decoder",), layers=(1,)),
    "lora_cross": METHODS["lora"](
        rank=3, stacks=("decoder",), linears=("encoder_decoder_attention/key",)
    ),
    "lora_both": METHODS["lora"](rank=3, stacks=("encoder", "decoder"), dropout_rate=0.1),
    "prompt_tuning": METHODS["prompt_tuning"](length=6, bottleneck=9),
    "prompt_tuning_plain": METHODS["prompt_tuning"](length=6, reparameterise=False, routes=2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "generation"),
    # T5 1.0 has no gate.
    mostly_slow(
        [(n, g) for n in VARIANTS for g in ("1.0", "1.1") if (n, g) != ("lora_gate", "1.0")],
        short=[*((n, "1.1") for n in METHODS if n != "adalink"), ("adalink_both", "1.0")],
    ),
)
def test_formulas_count_the_products_of_the_traced_step(name, generation):
    config = SMALL
    if generation == "1.0":
        config = dataclasses.replace(
            SMALL, mlp_activations=("relu",), logits_via_embedding=True, dropout_rate=0.0
        )
    method = VARIANTS[name]
    assert traced_flops(config, method, SHAPE) == formulas.flops(config, method, SHAPE)
    stored = counts.stored_parameters(config, method)
    assert stored == formulas.stored_parameters(config, method)


def test_its_own_are_found_in_stacked_and_rematerialised_layers():
    """Flax's names of modules stand in what JAX traces, which neither promises."""
    method = VARIANTS["lora_value"]
    config = dataclasses.replace(SMALL, scan_layers=True)
    expected = formulas.flops(config, method, SHAPE).method
    assert traced_flops(config, method, SHAPE).method >= expected > 0
    again = dataclasses.replace(config, remat="full")
    assert traced_flops(again, method, SHAPE).method > expected


def test_a_row_of_several_routes_costs_the_method_once_for_each():
    method = VARIANTS["adalink_routes"]
    one, three = (formulas.flops(SMALL, method, SHAPE, slots=s) for s in (1, 3))
    assert three.method == 3 * one.method
    assert three.train - one.train == 2 * one.method
    assert three == traced_flops(SMALL, method, SHAPE, slots=3)


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_adalink_adds_the_same_whatever_the_depth(depth):
    config = dataclasses.replace(SMALL, num_encoder_layers=depth, num_decoder_layers=depth)
    base = formulas.flops(config, Method(), SHAPE)
    adapted = formulas.flops(config, METHODS["adalink"](rank=4), SHAPE)
    tokens, width, rank = 2 * 11, 14, 4
    # Forward x · down and h · up; backward the gradients of up, of h, and of down.
    assert adapted.forward - base.forward == 2 * tokens * width * rank * 2
    assert adapted.method == 2 * tokens * width * rank * 5
    lora = formulas.flops(config, METHODS["lora"](rank=4), SHAPE)
    assert lora.method > depth * adapted.method


def test_freezing_saves_the_gradients_of_kernels_and_no_more():
    config = dataclasses.replace(SMALL, num_encoder_layers=24, num_decoder_layers=24)
    base = formulas.flops(config, Method(), SHAPE)
    full = formulas.flops(config, METHODS["full"](), SHAPE)
    adalink = formulas.flops(config, METHODS["adalink"](rank=4), SHAPE)
    assert base.train == base.forward  # Nothing trains: nothing goes backwards.
    assert full.train == 3 * full.forward
    assert 2.0 < adalink.train / base.forward < 2.5


def test_a_method_without_a_formula_is_traced():
    queries = METHODS["lora"](rank=2, linears=("attention/query",))
    assert formulas.flops(SMALL, Stabilised(rank=2), SHAPE) is None
    found = traced_flops(SMALL, Stabilised(rank=2), SHAPE)
    assert found == traced_flops(SMALL, queries, SHAPE) and found.method
    assert traced_step_flops(SMALL, queries, SHAPE) == found.train


def test_products_are_counted_through_loops_and_calls():
    x = jnp.ones((3, 3))

    def step(x, _):
        return jax.checkpoint(lambda x: x @ x @ x)(x), None

    def looped(x):
        return jax.lax.scan(step, x, None, length=5)[0].sum()

    once = 2 * 3 * 3 * 3
    assert counts.product_flops(jax.make_jaxpr(looped)(x).jaxpr)[0] == 5 * 2 * once
    # Rematerialised: of two products, one is needed again, and each goes backwards twice.
    backwards = jax.make_jaxpr(jax.grad(looped))(x)
    assert counts.product_flops(backwards.jaxpr)[0] == 5 * (2 + 1 + 4) * once


def test_products_in_a_loop_without_an_end_cannot_be_counted():
    def endless(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x)

    jaxpr = jax.make_jaxpr(endless)(jnp.ones((3, 3))).jaxpr
    with pytest.raises(ValueError, match="while"):
        counts.product_flops(jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "adalink", "lora", "prompt_tuning"])
def test_xla_counts_two_percent_more_at_most_where_products_dominate(name):
    config = dataclasses.replace(
        SMALL, vocab_size=2048, emb_dim=256, num_heads=4, head_dim=64, mlp_dim=1024,
        num_encoder_layers=2,
    )  # fmt: skip
    shape, method = Shape(batch=16, inputs=64, targets=32), VARIANTS[name]
    compiled = programs.compile_step(config, method, shape)
    ratio = compiled.flops / formulas.flops(config, method, shape).train
    assert 1.0 <= ratio <= 1.02
    assert compiled.peak_bytes >= programs.state_bytes(config, method) / 2


def test_parameters_are_the_papers():
    config = T5Config(
        vocab_size=32128, emb_dim=1024, num_heads=128, num_encoder_layers=24,
        num_decoder_layers=24, head_dim=128, mlp_dim=65536, logits_via_embedding=True,
    )  # fmt: skip
    for rank, count in ((4, 8_192), (256, 524_288)):
        found = counts.parameters(config, METHODS["adalink"](rank=rank))
        assert (found.trainable, found.stored, found.adapter_bytes) == (count, count, 4 * count)
        assert found.total == 11_307_321_344 + count
    prompt = counts.parameters(config, METHODS["prompt_tuning"]())
    assert prompt.stored == 64 * 1024
    assert prompt.trainable == 64 * 1024 + 2 * 1024 * 128 + 2 * 1024
