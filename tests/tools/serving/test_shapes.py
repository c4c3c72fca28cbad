"""Shapes of calls: few of them, and rows divided so that they end soonest."""

import itertools

import numpy as np
import pytest

from adalink_jax.tools.serving.shapes import divided, row_counts

SIZES = (1, 4, 16, 64)


def test_rows_of_calls_are_few():
    assert row_counts(64) == [1, 4, 16, 64]
    assert row_counts(48) == [1, 4, 16, 48]
    assert row_counts(1) == [1]


@pytest.mark.parametrize("seed", range(8))
def test_no_other_division_ends_sooner(seed):
    rng = np.random.default_rng(seed)
    costs = dict(zip(SIZES, np.sort(rng.random(4)) if seed % 2 else rng.random(4), strict=True))
    for count in rng.integers(1, 40, 4):
        sizes = divided(int(count), 64, costs.__getitem__)
        assert sum(sizes) >= count and sizes == sorted(sizes, reverse=True)
        # Dropping any call leaves rows without an answer.
        assert sum(sizes) - sizes[-1] < count
        most = [range(-(-int(count) // size) + 1) for size in SIZES]
        shortest = min(
            float(np.dot(chosen, list(costs.values())))
            for chosen in itertools.product(*most)
            if np.dot(chosen, SIZES) >= count
        )
        assert sum(costs[size] for size in sizes) == pytest.approx(shortest)


@pytest.mark.parametrize(
    ("count", "beside", "expected"),
    [
        (17, 4, [16, 1]),  # A call of 64 would be three quarters padding.
        (48, 4, [16, 16, 16]),
        (50, 4, [64]),
        (64, 4, [64]),
        (2, 4, [4]),
        (100, 4, [64, 16, 16, 4]),
        (17, 1000, [64]),  # As on a device that takes a call's time for any number of rows.
        (65, 1000, [64, 1]),
    ],
)
def test_padding_is_weighed_against_more_calls(count, beside, expected):
    assert divided(count, 64, lambda size: size + beside) == expected
