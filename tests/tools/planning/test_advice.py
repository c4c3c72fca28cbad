"""Which change of a step is advised, with a compiler of known answers."""

import dataclasses
import types

import pytest

from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import Shape
from adalink_jax.tools.planning import advice, topologies
from adalink_jax.tools.planning.compiling import Case

GIB = 2**30
CASE = Case(
    model="some",
    config=T5Config(vocab_size=32),
    label="adalink",
    method=METHODS["adalink"](rank=2),
    topology=topologies.find("v5e:2x2"),  # 15.75 GiB a chip.
    layout=Layout(),
    shape=Shape(batch=8, inputs=4, targets=2),
)
FULL = dataclasses.replace(CASE, method=METHODS["full"]())


def search(case, peak, argument=lambda case: 1.0):
    """Tries changes where `peak` and `argument` say GiB of a case; returns tries and compiled."""
    compiled = []

    def prepare(changed):
        def decided(level):
            assert level == "O1"
            compiled.append(changed)
            return types.SimpleNamespace(
                fits=peak(changed) <= 15.75, peak_bytes=int(peak(changed) * GIB)
            )

        total = int(argument(changed) * GIB)
        return types.SimpleNamespace(arguments=types.SimpleNamespace(total=total), decided=decided)

    return advice._search(case, prepare, "O1"), compiled


def test_the_first_that_fits_ends_the_search():
    tried, compiled = search(CASE, lambda case: 10 if case.config.remat == "full" else 20)
    assert [each.change for each in tried] == ["remat=minimal", "remat=full"]
    assert [each.fits for each in tried] == [False, True]
    assert tried[-1].peak_bytes == 10 * GIB and len(compiled) == 2


def test_changes_come_in_the_order_of_what_they_cost():
    words = [change for change, _ in advice.changes(CASE)]
    alone = [
        "remat=minimal", "remat=full", "fully_sharded=True", "model_parallelism=2",
        "model_parallelism=4", "model_parallelism=8", "gradient_accumulation_steps=2",
        "gradient_accumulation_steps=4", "gradient_accumulation_steps=8", "frozen_dtype=bfloat16",
        "frozen_dtype=int8",
    ]  # fmt: skip
    assert words[: len(alone)] == alone
    assert words[len(alone)] == "remat=full, fully_sharded=True, frozen_dtype=bfloat16"
    assert not any("frozen_dtype" in change for change, _ in advice.changes(FULL))


def test_a_case_is_changed_in_what_the_words_say_alone():
    for change, changed in advice.changes(CASE):
        back = dataclasses.replace(
            changed, config=CASE.config, layout=CASE.layout, accumulation=1, frozen_dtype="float32"
        )
        assert back == CASE and changed != CASE, change


def test_what_cannot_fit_is_not_compiled():
    """Where what the step is given alone is too much, no compiler is asked."""
    tried, compiled = search(
        CASE, lambda case: 12.0, lambda case: 10.0 if case.layout.fully_sharded else 40.0
    )
    assert [case.layout.fully_sharded for case in compiled] == [True]
    assert tried[-1].change == "fully_sharded=True" and tried[-1].fits
    assert [each.peak_bytes for each in tried[:-1]] == [None, None]


def test_the_number_of_compilations_is_bounded_and_nothing_is_claimed():
    tried, compiled = search(CASE, lambda case: 99.0)
    assert len(compiled) == advice.TRIES
    assert not any(each.fits for each in tried)


def test_a_layout_that_the_mesh_refuses_is_passed_over():
    def prepare(case):
        raise UserError("model_parallelism is 8, which does not divide the 4 devices present")

    assert advice._search(CASE, prepare, "O1") == []


@pytest.mark.parametrize("topology", ["v5p:1x1x1", "v6e:1x1"])
def test_one_chip_is_not_told_to_shard(topology):
    case = dataclasses.replace(CASE, topology=topologies.find(topology))
    assert not any("fully_sharded" in change for change, _ in advice.changes(case))
