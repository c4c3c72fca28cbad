"""What describe.py says of the paper's models, without allocating them."""

import json

import pytest

from adalink_jax import config
from adalink_jax.describe import description
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method


@pytest.mark.parametrize(("rank", "count"), [(4, 8_192), (256, 524_288)])
def test_the_paper_counts_at_the_command_line(capsys, rank, count):
    code = config.main(
        "adalink_jax.runs.describe",
        [
            "--gin_file=models/t5_1_0_11b.gin",
            "--gin_file=methods/adalink.gin",
            f"--gin.RANK={rank}",
            "--json",
        ],
        run_file="runs/describe.gin",
        switches={"json": ""},
    )
    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert said["parameters"]["trainable"] == said["groups"]["encoder adalink"]["total"] == count
    assert said["parameters"]["frozen"] == 11_307_321_344
    assert said["bytes"]["trainable"] == 4 * count
    assert said["tensors"]["encoder/layers_0/mlp/wi/kernel"]["mesh_axes"] == [None, "model"]
    assert said["tensors"]["encoder/adalink/down"]["shape"] == [1, 1024, rank]


def test_groups_add_up_and_tables_are_printed(tiny, capsys):
    cfg, base, _ = tiny
    import jax

    total = sum(leaf.size for leaf in jax.tree.leaves(base))
    assert description(cfg, Method())["parameters"] == {
        "total": total,
        "trainable": 0,
        "frozen": total,
    }
    full = description(cfg, METHODS["full"]())["parameters"]
    assert full["trainable"] == full["total"] == total
    lora = description(cfg, METHODS["lora"](rank=2))
    # Four attention matrices 16 × 16, two of 16 × 24 and one of 24 × 16 in each of two layers.
    assert lora["parameters"]["trainable"] == 2 * 2 * (4 * 32 + 3 * 40)
