"""What cannot fit in memory is refused before any of it is made."""

import jax
import jax.numpy as jnp
import optax
import pytest

from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs import memory

# Parameters by hand: a table of 8 · 4; in each stack a norm of 4, 32 buckets of 2 biases and one
# layer; 4 · 4 · 4 an attention, twice in the decoder; 3 · 4 · 16 an MLP; a norm before each.
CONFIG = T5Config(
    vocab_size=8,
    emb_dim=4,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=2,
    mlp_dim=16,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=True,
)
BASE = 8 * 4 + 2 * (4 + 32 * 2) + 3 * 64 + 2 * 3 * 4 * 16 + 5 * 4
MESH = sharding.make_mesh()


def checked(monkeypatch, limit: int, method, frozen_dtype="float32", copies=0) -> None:
    monkeypatch.setattr(memory, "of_device", lambda: limit)
    moments = optax.scale_by_rms(0.9)  # One value for each parameter.
    memory.check_state(method, moments, MESH, sharding.WHOLE, frozen_dtype, CONFIG, copies)


@pytest.mark.parametrize(("frozen_dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_state_needs_its_parameters_gradients_and_moments(monkeypatch, frozen_dtype, size):
    method = METHODS["adalink"](rank=3)
    needed = 3 * 4 * (2 * 3 * 4) + size * BASE
    checked(monkeypatch, needed, method, frozen_dtype)
    with pytest.raises(UserError, match="the model does not fit"):
        checked(monkeypatch, needed - 1, method, frozen_dtype)


def test_an_adapter_that_cannot_fit_is_blamed_by_its_size(monkeypatch):
    method = METHODS["adalink"](rank=10**7)
    said = "AdaLink.rank is 10000000: the adapter alone would need 305.2 MiB, and 915.5 MiB with"
    with pytest.raises(UserError, match=said):
        checked(monkeypatch, 2**20, method)
    # Sizes whose product no array can have.
    method = METHODS["adalink"](rank=2**28, routes=2**28)
    with pytest.raises(UserError, match="rank is 268435456"):
        checked(monkeypatch, 2**40, method)


def test_full_fine_tuning_that_cannot_fit_names_no_adapter(monkeypatch):
    with pytest.raises(UserError, match="the model does not fit"):
        checked(monkeypatch, 3 * 4 * BASE - 1, METHODS["full"]())
    checked(monkeypatch, 3 * 4 * BASE + 64, METHODS["full"]())
    with pytest.raises(UserError, match="the model does not fit"):  # With a copy of the best one.
        checked(monkeypatch, 4 * 4 * BASE - 1, METHODS["full"](), copies=1)


def test_batches_that_cannot_fit(monkeypatch):
    row = 4 * 10 * (4 + 2 * 10) + 4 * 6 * 8  # Input and attention of 10 tokens, logits of 6.
    monkeypatch.setattr(memory, "of_device", lambda: 5 * row)
    memory.check_batch(CONFIG, MESH, 5, [(8, 6), (10, 4)])
    with pytest.raises(UserError, match="BATCH_SIZE is too large: 6 rows on a device"):
        memory.check_batch(CONFIG, MESH, 6, [(8, 6), (10, 4)])
    monkeypatch.setattr(memory, "of_device", lambda: 5 * 4 * 16 * 4)
    memory.check_evaluation(CONFIG, MESH, 5)
    with pytest.raises(UserError, match="Evaluation.batch_size is too large"):
        memory.check_evaluation(CONFIG, MESH, 5, generated=1)


def test_the_machines_memory_is_what_the_smallest_limit_leaves(tmp_path):
    assert 2**28 < memory.of_machine() < 2**50
    assert memory.of_device() == memory.of_machine() // jax.local_device_count()
    for text, limit in (("max\n", float("inf")), ("1048576\n", 2**20)):
        (tmp_path / "memory.max").write_text(text)
        assert memory._limit(tmp_path / "memory.max") == limit
    assert memory._limit(tmp_path / "none") == float("inf")


def test_a_failed_allocation_is_one_line():
    """No address space holds 2^50 bytes, whatever a system promises."""
    with pytest.raises(UserError, match="there is not enough memory: .*1125899906842624"):
        with memory.shortage():
            jnp.zeros(2**50, jnp.int8).block_until_ready()
    with pytest.raises(UserError, match="there is not enough memory"), memory.shortage():
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError), memory.shortage():
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")
