"""What describe.py says of the paper's models, without allocating them."""

import json

import pytest

from adalink_jax.config import gin_files
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.runs.description import description, print_description


@pytest.mark.parametrize(("rank", "count"), [(4, 8_192), (256, 524_288)])
def test_the_paper_counts_at_the_command_line(capsys, rank, count):
    code = gin_files.main(
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


# What was published: in words by Raffel et al. 2020 (arXiv 1910.10683, section 3.7) for T5 1.0, and
# by Chung et al. 2022 (arXiv 2210.11416, table 2) for FLAN-T5, whose sizes are T5 1.1's; exactly,
# the sum of the sizes of the arrays in Google's checkpoints, which PyTorch counts likewise.
PUBLISHED = {
    "t5_1_0_small": (60e6, 60_506_624),
    "t5_1_0_base": (220e6, 222_903_552),
    "t5_1_0_large": (770e6, 737_668_096),
    "t5_1_0_3b": (2.8e9, 2_851_598_336),
    "t5_1_0_11b": (11e9, 11_307_321_344),
    "flan_t5_small": (80e6, 76_961_152),
    "flan_t5_base": (250e6, 247_577_856),
    "flan_t5_large": (780e6, 783_150_080),
    "flan_t5_xl": (3e9, 2_849_757_184),
    "flan_t5_xxl": (11e9, 11_135_332_352),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_sizes_have_the_published_parameters(capsys, name):
    code = gin_files.main(
        "adalink_jax.runs.describe",
        [f"--gin_file=models/{name}.gin", "--gin_file=methods/full.gin", "--json"],
        run_file="runs/describe.gin",
        switches={"json": ""},
    )
    said = json.loads(capsys.readouterr().out)["parameters"]
    in_words, exact = PUBLISHED[name]
    assert code == 0
    assert said == {"total": exact, "trainable": exact, "frozen": 0}
    assert said["total"] == pytest.approx(in_words, rel=0.06)


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
    lora = description(cfg, METHODS["lora"](rank=2, rate_factors=(("*/up", 4.0),)))
    factors = {n[-2:]: t.get("rate_factor") for n, t in lora["tensors"].items() if "lora" in n}
    assert factors == {"up": 4.0, "wn": 1.0}
    print_description(lora)
    assert "learning rate" in capsys.readouterr().out
    # Four attention matrices 16 × 16, two of 16 × 24 and one of 24 × 16 in each of two layers.
    assert lora["parameters"]["trainable"] == 2 * 2 * (4 * 32 + 3 * 40)
