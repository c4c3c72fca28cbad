"""Adding a method is one module, one line and one gin file: shown on a copy of the tree."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Its size has an odd name and no default, its dropout a name of its own, its scale depends on the
# size, and it says of itself only what it must.
MODULE = '''\
"""A low-rank product beside the queries, scaled as rsLoRA's."""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn

from adalink_jax.methods.base import Method
from adalink_jax.methods.low_rank import LowRank
from adalink_jax.values import Rate, Size


@dataclasses.dataclass(frozen=True)
class Crook(Method):
    """Attributes: bend, the columns of the product; leak, its dropout; routes."""

    bend: Size
    leak: Rate = 0.1
    routes: Size = 1

    scope: ClassVar[str] = "crook"
    size_field: ClassVar[str] = "bend"

    def linear(self, x, y, kernel, site, ctx):
        if site.linear != "attention/query":
            return y
        delta = LowRank(
            features=y.shape[-1],
            rank=self.bend,
            routes=self.routes,
            down_init=nn.initializers.normal(0.1),
            dropout_rate=self.leak,
            name=self.scope,
        )(x, ctx)
        return y + ctx.gate * delta / math.sqrt(self.bend)
'''
GIN = """\
# A method that nobody has heard of.
#
# Provides: METHOD, LEARNING_RATE, OPTIMIZER
# Requires: nothing
# Commonly overridden: LEARNING_RATE, crook.Crook.bend
from __gin__ import dynamic_registration

from adalink_jax.methods import crook
from adalink_jax.training import optimizers

# What is adapted.
METHOD = @crook.Crook()
# Of the constant schedule.
LEARNING_RATE = 0.01
# Of the trained parameters.
OPTIMIZER = @optimizers.adafactor

crook.Crook.bend = 3

optimizers.factors.factors = 'constant'
optimizers.factors.base_learning_rate = %LEARNING_RATE
optimizers.adafactor.multiply_by_parameter_scale = False
optimizers.adafactor.factored = False
"""
# The tests that run over all methods; of these, the new one's.
TESTS = (
    "tests/methods/test_matrix.py",
    "tests/test_gin_files.py",
    "tests/distributed/test_sharding.py",
    "tests/checkpoints/test_adapters.py",
    "tests/methods/test_one_home.py",
)
SIZES = (
    "--gin.TRAIN_STEPS=3", "--gin.BATCH_SIZE=4", "--gin.EVAL_PERIOD=3", "--gin.MODEL=None",
    "--gin.MIXTURE_OR_TASK_NAME='mini_sst2'", "--gin.Evaluation.limit=4",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 4}", "--gin.DROPOUT_RATE=0.0",
    "--gin.INITIAL_CHECKPOINT_PATH='adalink_jax/bases/mini'",
)  # fmt: skip
METHOD = "--gin_file=methods/crook.gin"
SERVED = ("--base=adalink_jax/bases/mini", "--adapters=runs", "--vocabulary=mini", "--targets=4")
# One process for all: a command, its arguments.
COMMANDS = [
    ("describe", "--gin_file=models/mini.gin", METHOD),
    ("cost", "--model=tiny", "--method=crook", "--batch=2", "--inputs=6", "--targets=3"),
    ("cost", "--model=mini", "--budget=3072"),
    ("train", METHOD, "--gin_file=runs/finetune.gin", *SIZES, "--gin.MODEL_DIR='runs/crooked'"),
    ("infer", *SERVED, "--input=requests.jsonl", "--output=answers.jsonl"),
]
DRIVER = """
import contextlib, io, json, sys
import pytest
from adalink_jax.cli import main

commands, tests = json.load(sys.stdin)
assert pytest.main(["-q", "-p", "no:cacheprovider", "-k", "crook", *tests]) == 0
said = []
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command) == 0, command
    said.append(out.getvalue())
json.dump(said, open("said.json", "w"))
"""


@pytest.fixture
def copy(tmp_path, token_cache) -> pathlib.Path:
    """The tree with one more method."""
    for name in ("adalink_jax", "gin", "tasks", "tests", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "adalink_jax/methods/crook.py").write_text(MODULE)
    (tmp_path / "gin/methods/crook.gin").write_text(GIN)
    methods = tmp_path / "adalink_jax/methods/__init__.py"
    text = methods.read_text()
    text = text.replace("\nfrom", "\nfrom adalink_jax.methods.crook import Crook\nfrom", 1)
    methods.write_text(text.replace('    "full"', '    "crook": Crook,\n    "full"'))
    (tmp_path / "requests.jsonl").write_text(
        '{"text": "the dog is good", "adapter": "crooked", "labels": ["positive", "negative"]}\n'
    )
    return tmp_path


@pytest.mark.slow
def test_every_command_takes_a_method_added_by_three_edits(copy, token_cache):
    environment = {**os.environ, "PYTHONPATH": str(copy), "ADALINK_CACHE_DIR": str(token_cache)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=copy, env=environment, text=True,
        input=json.dumps([COMMANDS, TESTS]), capture_output=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    described, card, budgets, _, _ = json.loads((copy / "said.json").read_text())
    assert "encoder crook" in described
    (row,) = [line for line in card.splitlines() if line.startswith("| tiny | crook |")]
    assert all(cell.strip() for cell in row.strip("|").split("|"))
    # Three queries, 256 a column each.
    assert "mini, crook: 3,072 parameters (+0.00%)  --gin.crook.Crook.bend=4" in budgets
    assert "mini, adalink: " in budgets and "trains the whole model" in budgets
    (answer,) = map(json.loads, (copy / "answers.jsonl").read_text().splitlines())
    assert answer["adapter"] == "crooked" and answer["prediction"] in answer["scores"]
    record = json.loads((copy / "runs/crooked/adapter/adapter.json").read_text())
    assert record["settings"] == {"bend": 3, "leak": 0.1, "routes": 1}
