"""adalink adapter compress: ComPEFT's numbers, two bits each, chosen by score."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax import cli
from adalink_jax.adapters import compress
from adalink_jax.adapters.compress import compressed
from adalink_jax.checkpoints import load_adapter, save_adapter, ternary
from adalink_jax.checkpoints.adapters import write_record
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config

CONFIG = T5Config(
    vocab_size=40, emb_dim=12, num_heads=2, num_encoder_layers=2, num_decoder_layers=1,
    head_dim=4, mlp_dim=16,
)  # fmt: skip
LORA = METHODS["lora"](rank=3, routes=2)


@pytest.fixture(scope="module")
def base(write_base):
    return write_base(CONFIG)


@pytest.fixture
def adapter(base, write_adapter):
    return write_adapter(LORA, base, routes=["a", "b"])


def flat(tree):
    return traverse_util.flatten_dict(dict(tree), sep="/")


@pytest.mark.parametrize(("density", "scale"), [(0.05, 1.0), (0.3, 0.5), (1.0, 4.0)])
def test_numbers_are_compefts(density, scale):
    """Per route: the largest k % of all numbers together, as their signs times α·std (N − 1)."""
    rng = np.random.default_rng(0)
    tree = {"x": {"down": rng.normal(0, 1, (2, 5, 3)), "up": rng.normal(0, 0.1, (2, 3, 7))}}
    found = flat(compressed(tree, density, scale))
    for route in range(2):
        tau = np.concatenate([leaf[route].ravel() for leaf in tree["x"].values()])
        ours = np.concatenate([leaf[route].ravel() for leaf in found.values()])
        kept = np.sort(np.abs(tau))[::-1][: int(density * 36)]
        std = np.sqrt(np.sum((tau - tau.mean()) ** 2) / 35)
        expected = np.where(np.abs(tau) >= kept[-1], np.sign(tau), 0) * scale * std
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_arrays_of_three_numbers_come_back_from_their_bits():
    rng = np.random.default_rng(0)
    array = rng.integers(-1, 2, (3, 5, 7)) * np.array([0.5, 2.0, 0.0])[:, None, None]
    array = array.astype(np.float32)
    entry = {"shape": [3, 5, 7], "scales": ternary.scales(array)}
    assert entry["scales"] == [0.5, 2.0, 0.0]
    bits = ternary.encoded(array)
    assert bits.nbytes == 2 * 14
    np.testing.assert_array_equal(ternary.decoded(bits, entry), array)
    assert ternary.scales(array + 0.1) is None
    both = bits | bits[::-1]
    for wrong, changed in (
        (both, {}), (bits[:1], {}), (bits.astype(np.int8), {}), (bits | 1, {}),
        (bits, {"shape": [3, 5, 0]}), (bits, {"scales": [1.0]}),
        (bits, {"scales": [1.0, -1.0, 1.0]}),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            ternary.decoded(wrong, {**entry, **changed})


def test_a_compressed_adapter_loads_like_any_other(adapter, base, tmp_path, capsys):
    small = tmp_path / "small"
    command = ["adapter", "compress", str(adapter), f"--to={small}"]
    assert cli.main([*command, "--density=0.2", "--scale=2"]) == 0
    before, after = load_adapter(adapter), load_adapter(small)
    expected, found = flat(compressed(before.tree, 0.2, 2.0)), flat(after.tree)
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
        assert leaf.dtype == np.float32
    assert (after.method, after.route_names) == (before.method, before.route_names)
    assert after.metadata["compression"] == {"density": 0.2, "scale": 2.0}
    sizes = [(path / "adapter.safetensors").stat().st_size for path in (adapter, small)]
    assert f"density 0.2, scale 2, {sizes[1]:,} bytes where there were {sizes[0]:,}" in (
        capsys.readouterr().out
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(after.tree))
    header = int.from_bytes((small / "adapter.safetensors").read_bytes()[:8], "little")
    assert sizes[1] - header - 8 <= parameters / 4 + 2 * len(found)
    assert cli.main(["adapter", "verify", str(small), str(base)]) == 0
    assert cli.main(["adapter", "split", str(small), f"--to={tmp_path / 'parts'}"]) == 0
    part = flat(load_adapter(tmp_path / "parts" / "b").tree)
    np.testing.assert_array_equal(next(iter(part.values()))[0], next(iter(found.values()))[1])


def test_a_leaf_that_becomes_all_zeros_is_said(adapter, tmp_path, capsys):
    """In one of two routes `down` holds all the largest numbers, as after a short training."""
    loaded = load_adapter(adapter)
    rng = np.random.default_rng(0)
    leaves = {name: rng.uniform(1, 2, leaf.shape) for name, leaf in flat(loaded.tree).items()}
    for name, leaf in leaves.items():
        leaf[1] *= 10.0 if name.endswith("down") else 0.1
    names = compress._emptied(leaves, compressed(traverse_util.unflatten_dict(leaves, "/"), 0.3, 1))
    assert names == [name for name in leaves if name.endswith("up")]
    command = ["adapter", "compress", str(adapter), f"--to={tmp_path / 'small'}"]
    assert cli.main([*command, "--density=0.001", "--scale=2"]) == 0
    assert "are 0 and the adapter may do nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"scales": [1.0]}, {"scales": None}, {"shape": [2, 10**9, 3]}, {"dtype": "float32"}],
)
def test_a_record_that_lies_of_bits_is_refused(adapter, tmp_path, change):
    small = tmp_path / "small"
    loaded = load_adapter(adapter)
    save_adapter(
        small, compressed(loaded.tree, 0.2, 1.0), method_name="lora", settings=LORA.settings(),
        architecture=CONFIG, base_fingerprint="0" * 64, route_names=("a", "b"), compressed=True,
    )  # fmt: skip
    record = json.loads((small / "adapter.json").read_text())
    entry = next(iter(record["tensors"].values()))
    assert entry["dtype"] == "ternary" and record["format_version"] == 2
    entry.update(change)
    write_record(small, record)
    with pytest.raises(UserError, match=r"adapter\.safetensors: .* (damaged|is uint8)"):
        load_adapter(small)


def test_mistakes_are_one_line(adapter, base, write_adapter, tmp_path, capsys):
    def refused(*arguments, adapter=adapter):
        to = tmp_path / "to"
        assert cli.main(["adapter", "compress", str(adapter), f"--to={to}", *arguments]) == 2
        assert not to.exists()
        return capsys.readouterr().err

    assert "give --base and --task" in refused()
    assert "give --base and --task" in refused("--density=0.1", "--scale=1", "--task=mini_rte")
    assert "--density is 2; it takes a number above 0 and up to 1" in refused("--density=2")
    assert "--scale is 0; it takes a number above 0" in refused("--density=0.1", "--scale=0")
    assert "--data takes the place of --task" in refused("--data=x.csv")
    message = refused("--data=x.csv", f"--base={base}")
    assert "was not trained on one table; give a task by --task" in message
    full = write_adapter(METHODS["full"](), base)
    message = refused("--density=0.1", "--scale=1", adapter=full)
    assert "method 'full' holds parts of a base" in message
    arguments = [str(adapter), f"--to={adapter}", "--density=0.1", "--scale=1"]
    assert cli.main(["adapter", "compress", *arguments]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_density_and_scale_are_chosen_by_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\n" + "the film was good,yes\nthe dog,no\n" * 20)
    (tmp_path / "b-new.csv").write_text("label,text\nno,the cat\nyes,a good film\nno,a dog\n")
    files = ["--gin_file=experiments/own_data.gin", "--gin_file=methods/adalink.gin"]
    base = [
        "--data=a.csv",
        "--dev=b-new.csv",
        "--gin.MODEL_DIR=run",
        "--gin.INITIAL_CHECKPOINT_PATH=mini",
    ]
    short = ["--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4"]
    assert cli.main(["train", *files, *base, *short]) == 0
    given = ["--base=mini", "--data=b-new.csv", "--density", "0.1", "0.5", "--scale=1"]
    capsys.readouterr()
    assert cli.main(["adapter", "compress", "run", "--to=small", *given]) == 0
    said = capsys.readouterr().out
    assert "b-new.csv: 3 to score" in said and "score of a: " in said
    assert load_adapter(tmp_path / "small").metadata["compression"]["task"] == "a"


@pytest.mark.slow
def test_density_and_scale_are_chosen_by_score(mini_base, write_adapter, tmp_path, capsys):
    adapter = write_adapter(METHODS["adalink"](rank=2), mini_base)
    small = tmp_path / "small"
    command = ["adapter", "compress", str(adapter), f"--to={small}", f"--base={mini_base}"]
    command += ["--task=mini_rte", "--density", "0.1", "0.5", "--scale", "1", "8"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("density")]
    scores = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(scores) == 4 and len(set(scores)) > 1
    recorded = load_adapter(small).metadata["compression"]
    assert recorded["score"] == pytest.approx(max(scores), abs=0.006)
    best = lines[scores.index(max(scores))]
    assert best.startswith(f"density {recorded['density']:g}, scale {recorded['scale']:g}:")
