"""The adapters of servers in tests."""

import pytest

from adalink_jax.checkpoints import load_base
from tests.tools.serving.served import EVERY, METHODS_OF, write, written


@pytest.fixture(scope="module")
def base(mini_base):
    return load_base(mini_base)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """The folder of adapters, and their trees."""
    folder = tmp_path_factory.mktemp("served")
    trees = written(base, folder, {name: METHODS_OF[name] for name in EVERY})
    data = {"tasks": [{"name": "mine"}]}
    write(folder / "own", base, METHODS_OF["adalink_2"], trees["adalink_2"], data=data)
    return folder, trees
