"""Names beside a plot's points: short, and none over another."""

import itertools
import types

import numpy as np
import pytest

from adalink_jax.tools.report import naming, plots, runs


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["adalink, rank 4", "houlsby (bottleneck, rank 8)"], ["adalink", "houlsby"]),
        (["lora, rank 4, 64 examples", "lora, rank 8, 64 examples"], ["rank 4", "rank 8"]),
        (["full"], ["full"]),
        (  # Only those with the same first word say more; long names are cut.
            [
                "lora, rank 4, 64 examples",
                "lora, rank 4, layers 2, encoder and decoder, 64 examples",
                "unipelt (lora, rank 8), 64 examples",
            ],
            ["lora, rank 4", "lora, rank 4, layers 2, encoder…", "unipelt"],
        ),
        ([f"lora, {'a' * 40}, rank {rank}" for rank in (1, 2)], ["rank 1", "rank 2"]),
        (["lora, " + "a" * 40, "lora, " + "a" * 39], ["a" * 40, "a" * 39]),
    ],
)
def test_names_are_what_tells_labels_apart(labels, short):
    assert naming.short_names(labels) == short


@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        ("adalink train --gin_file=experiments/mini.gin --gin_file=methods/houlsby.gin", "houlsby"),
        ("adalink train --gin_file 'my methods/methods/mine.gin' --gin.RANK=3", "mine"),
        ("adalink train --gin_file=methods/bottleneck.gin", ""),
        ("adalink train --gin_file=experiments/mini_lora.gin", ""),
    ],
)
def test_a_run_tells_the_recipe_it_was_made_by(command, recipe):
    run = types.SimpleNamespace(command=command, method_name="bottleneck")
    assert runs.Run.recipe.fget(run) == recipe


def test_no_name_covers_another_or_leaves_the_axes():
    rng, area, height = np.random.default_rng(0), (600.0, 380.0), 8.4
    # Forty methods whose scores are within a tenth of the axis.
    points = [(x, y) for x, y in rng.uniform((0, 300), (600, 340), (40, 2))]
    widths = rng.uniform(15, 80, 40).tolist()
    places = naming.placed(points, widths, height, area)
    boxes = [(x, y, x + w, y + height) for (x, y), w in zip(places, widths, strict=True)]
    for (left, low, right, up), (left2, low2, right2, up2) in itertools.combinations(boxes, 2):
        assert right <= left2 or right2 <= left or up <= low2 or up2 <= low
    assert all(0 <= a and 0 <= b and c <= area[0] and d <= area[1] for a, b, c, d in boxes)


def test_one_point_alone_has_its_name_at_its_side():
    (place,) = naming.placed([(100.0, 50.0)], [30.0], 10.0, (600.0, 300.0))
    assert place == (105.0, 45.0)


def panel(count, chance):
    made = [plots.Series(f"lora, rank {i}", "lora", (plots.Point(i, 90 + i / 10),))
            for i in range(1, count + 1)]  # fmt: skip
    levels = (plots.Level("chance", "", chance),)
    return plots.Panel("scores", "stored", tuple(made), levels, "log")


def test_many_points_are_named_in_the_plot_and_few_in_the_legend():
    few, many = panel(7, 89.0), panel(8, 89.0)
    assert len(plots.labels(few)) == 8 and plots.labels(many) == ["chance"]
    drawn = plots.svg(many, plots.looks([many]), "a")
    assert all(f">rank {i}<" in drawn for i in range(1, 9))
    assert ">rank 1<" not in plots.svg(few, plots.looks([few]), "a")


def test_a_level_far_from_many_points_does_not_press_them_flat():
    assert plots.limits(panel(8, 20.0))[0] > 80 > plots.limits(panel(7, 20.0))[0]
    assert plots.labels(panel(8, 20.0)) == []
