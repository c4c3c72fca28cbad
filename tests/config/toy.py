"""What the tests configure: plain functions and classes, as library code is."""

import dataclasses
import os
import pathlib

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError

BASE = """
from __gin__ import dynamic_registration

import toy

MODEL_DIR = %gin.REQUIRED
STEPS = 10
RANK = 4
METHOD = @toy.Method()

toy.Method.rank = %RANK
toy.train.model_dir = %MODEL_DIR
toy.train.method = %METHOD
toy.train.steps = %STEPS
toy.describe.method = %METHOD
"""
RECEIVED = {}  # What the last call got.


@dataclasses.dataclass(frozen=True)
class Method:
    """Takes a rank."""

    rank: int
    kind: str = "identity"
    shape: tuple = (1, 2)

    def __post_init__(self):
        if not isinstance(self.rank, int):
            raise UserError(f"Method.rank is {self.rank!r}; it must be an integer")


@dataclasses.dataclass(frozen=True)
class Strict:
    """Raises errors of Python's own."""

    rank: int = 1

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}")


def schedule(rate=0.5, power=1):
    """A function that returns a function."""
    return lambda step: rate * step**power


def optimizer(learning_rate, scale=True):
    """Called through a reference."""
    return learning_rate, scale


def train(*, model_dir, method, steps, optimizer=None, seed=0, lengths=None, configuration):
    """Trains a toy."""
    RECEIVED.clear()
    RECEIVED.update(locals())
    RECEIVED["environment"] = dict(os.environ)
    if seed == 13:
        raise UserError("seed 13 is unlucky")


@dataclasses.dataclass(frozen=True)
class Places:
    """A group of settings."""

    devices: int = 1
    parts: int = dataclasses.field(default=2, metadata={"recorded_as": "num_parts"})

    def __post_init__(self):
        if self.devices < 1:
            raise UserError(f"devices is {self.devices}; it must be at least 1")


def place(*, model_dir, places: Places = Places(), configuration):  # noqa: B008
    """Takes a group, bound or not."""
    RECEIVED.clear()
    RECEIVED.update(locals())


def describe(*, method, json, configuration):
    """Describes a toy."""
    RECEIVED.clear()
    RECEIVED.update(locals())


def anything(**settings):
    """Takes all names."""
    return settings


def write(name: str, text: str) -> None:
    """Writes a gin file whose third line is the first of `text`."""
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from __gin__ import dynamic_registration\nimport toy\n{text}")


def run(*arguments: str) -> int:
    """Runs `train` by a command line that begins with base.gin."""
    return gin_files.main("toy.train", ["--gin_file=base.gin", *arguments])
