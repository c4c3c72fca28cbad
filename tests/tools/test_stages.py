"""States of stages come back as they were, and only to what they began from; bases are written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.checkpoints import fingerprint, load_base
from adalink_jax.errors import UserError
from adalink_jax.tools import stages


def test_a_state_comes_back_only_to_what_it_began_from(tmp_path):
    path, tree = tmp_path / "raw.state.safetensors", {"a": np.ones(3, np.float32)}
    assert stages.restored(path, "one", tree) == ({}, tree)
    stages.save(path, "one", {"step": 7, "spent": 1.25}, tree, [np.int32(4)])
    progress, found, (count,) = stages.restored(path, "one", {"a": np.zeros(3)}, [0])
    assert progress == {"step": 7, "spent": 1.25} and count == 4
    assert found["a"].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="begun from other parameters or data"):
        stages.restored(path, "another", tree)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="is damaged; remove it"):
        stages.restored(path, "one", tree)


def test_a_base_is_written_in_half_the_bytes(tmp_path, tiny):
    config, params, _ = tiny
    stages.write_base(tmp_path / "raw", params, config, {"seed": 3})
    found, base = load_base(str(tmp_path / "raw"))
    assert found.emb_dim == config.emb_dim
    wanted = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, base, wanted)
    record = json.loads((tmp_path / "raw" / "adapter.json").read_text())
    assert record["base_fingerprint"] == fingerprint(wanted) and record["metadata"]["seed"] == 3
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (tmp_path / "raw" / "adapter.safetensors").stat().st_size < 2 * size + 10_000
