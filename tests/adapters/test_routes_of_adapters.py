"""adapter.py's stack and split: adapters to routes and back, by their bytes."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.adapters.pack import places_of
from adalink_jax.adapters.texts import labels_of
from adalink_jax.checkpoints import load_adapter
from adalink_jax.checkpoints.adapters import write_record
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from tasks import LABELS
from tests.tiers import mostly_slow

CONFIG = T5Config(
    vocab_size=40, emb_dim=12, num_heads=2, num_encoder_layers=2, num_decoder_layers=1,
    head_dim=4, mlp_dim=16,
)  # fmt: skip
SINGLE = {
    "adalink": METHODS["adalink"](rank=2, activation="relu"),
    "lora": METHODS["lora"](rank=2, layers=(1,), alpha=3.0),
    "prompt_tuning": METHODS["prompt_tuning"](
        length=3, reparameterise=False, initialisation="random"
    ),
}


@pytest.fixture(scope="module")
def base(write_base):
    return write_base(CONFIG)


def stack(adapters, to):
    return cli.main(["adapter", "stack", *map(str, adapters), f"--to={to}"])


def split(adapter, to):
    return cli.main(["adapter", "split", str(adapter), f"--to={to}"])


def name_task(folder, task):
    """Writes into an adapter's record what a run on one task writes."""
    record = json.loads((folder / "adapter.json").read_text())
    record["metadata"] = {"data": {"tasks": [{"name": task}]}}
    write_record(folder, record)


@pytest.mark.parametrize("name", mostly_slow(SINGLE, ["adalink"]))
def test_adapters_become_routes_and_adapters_again(name, base, write_adapter, tmp_path, capsys):
    folders = [write_adapter(SINGLE[name], base, seed=seed, routes=["all"]) for seed in range(3)]
    for folder, task in zip(folders, ("glue_rte", "glue_cola", "glue_qnli"), strict=True):
        name_task(folder, task)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert stack(folders, whole) == 0
    stacked = load_adapter(whole)
    assert stacked.route_names == ("glue_rte", "glue_cola", "glue_qnli")
    assert stacked.method == SINGLE[name].with_routes(3)
    # It fits its base, on which each route changes something.
    assert cli.main(["adapter", "verify", str(whole), str(base)]) == 0

    assert split(whole, parts) == 0
    for folder, task in zip(folders, stacked.route_names, strict=True):
        one, again = folder / "adapter.safetensors", parts / task / "adapter.safetensors"
        assert one.read_bytes() == again.read_bytes()
        assert load_adapter(parts / task).method == SINGLE[name]
    # What was split is stacked under the same names, and a stacked adapter takes in another.
    both = [str(parts / "glue_cola"), str(parts / "glue_rte")]
    assert stack(both, tmp_path / "two") == 0
    assert load_adapter(tmp_path / "two").route_names == ("glue_cola", "glue_rte")
    more = [str(tmp_path / "two"), str(folders[2])]
    assert stack(more, tmp_path / "three") == 0
    three = load_adapter(tmp_path / "three")
    assert three.route_names == ("glue_cola", "glue_rte", "glue_qnli")
    for got, expected in zip(_leaves(three), _leaves(stacked), strict=True):
        np.testing.assert_array_equal(got, expected[[1, 0, 2]])
    capsys.readouterr()


def _leaves(adapter):
    return jax.tree.leaves(adapter.tree)


def test_a_mistyped_folder_of_adapters_gets_the_nearest(tmp_path):
    (tmp_path / "adapters").mkdir()
    with pytest.raises(UserError, match=r"no folder .*adaptres of adapters; did you mean 'adap"):
        places_of(tmp_path / "adaptres")


def test_mistakes_are_one_line_and_write_nothing(base, write_adapter, write_base, tmp_path, capsys):
    adalink = str(write_adapter(SINGLE["adalink"], base))
    wider = str(write_adapter(METHODS["adalink"](rank=3, activation="relu"), base))
    lora = str(write_adapter(SINGLE["lora"], base))
    full = str(write_adapter(METHODS["full"](), base))
    foreign = str(
        write_adapter(SINGLE["adalink"], write_base(dataclasses.replace(CONFIG, vocab_size=41)))
    )
    to = str(tmp_path / "to")
    for others, words in (
        ([adalink, lora], "is of method lora, but"),
        ([adalink, wider], "settings"),
        ([adalink, foreign], "is of base"),
        ([adalink, adalink], "two routes would be called"),
        ([full, adalink], "whole model"),
        ([adalink, str(tmp_path)], "no file adapter.json"),
    ):
        assert stack(others, to) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert split(adalink, to) == 2
    assert "nothing to split" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
    (tmp_path / "to").mkdir()
    assert stack([adalink], to) == 2
    assert "not overwritten" in capsys.readouterr().err


def test_many_customers_of_one_task_have_names(base, write_adapter, tmp_path, capsys):
    folders = [
        write_adapter(SINGLE["adalink"], base, seed=seed, routes=["all"]) for seed in range(2)
    ]
    for folder in folders:
        name_task(folder, "glue_rte")
    assert stack(folders, tmp_path / "both") == 2
    assert "two routes would be called 'glue_rte'" in capsys.readouterr().err
    command = ["adapter", "stack", *map(str, folders), f"--to={tmp_path / 'both'}", "--names"]
    assert cli.main([*command, "acme"]) == 2
    assert "--names has 1 names, for 2 routes" in capsys.readouterr().err
    assert cli.main([*command, "acme", "acme"]) == 2
    assert "two routes would be called 'acme'" in capsys.readouterr().err
    assert cli.main([*command, "acme", "zenith"]) == 0
    assert load_adapter(tmp_path / "both").route_names == ("acme", "zenith")


def test_a_packed_file_has_every_adapter_as_it_was(base, write_adapter, tmp_path, capsys):
    """Read by name, checked as from its folder, and never written over."""
    place, pack = tmp_path / "all", tmp_path / "all.safetensors"
    names = [f"tenant_{seed}" for seed in range(5)]
    place.mkdir()
    for seed, name in enumerate(names):
        shutil.copytree(write_adapter(SINGLE["adalink"], base, seed=seed), place / name)
    (place / "unfinished" / "state").mkdir(parents=True)  # A run without an adapter so far.
    assert cli.main(["adapter", "pack", str(place), f"--to={pack}"]) == 0
    said = capsys.readouterr().out
    assert "5 adapters" in said and "unfinished: no adapter in this folder" in said
    folders, packed = places_of(place), places_of(pack)
    assert list(packed.names()) == list(folders.names()) == names
    for name in names:
        for got, expected in zip(*(_leaves(p.load(name)) for p in (packed, folders)), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert packed.holds("tenant_1") and not packed.holds("tenant_9")
    assert cli.main(["adapter", "pack", str(place), f"--to={pack}"]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    # One flipped bit of the arrays is found when its adapter is read, and no other's.
    content = bytearray(pack.read_bytes())
    content[-5] ^= 1
    pack.write_bytes(content)
    with pytest.raises(UserError, match="'tenant_4': truncated or altered"):
        places_of(pack).load("tenant_4")
    places_of(pack).load("tenant_3")
    pack.write_bytes(content[:100])
    with pytest.raises(UserError, match="truncated or damaged"):
        places_of(pack)
    with pytest.raises(UserError, match="no packed adapters"):
        places_of(place / names[0] / "adapter.safetensors")
    shutil.copytree(place / names[0], place / "unfinished" / "adapter")
    assert list(folders.names()) == [*names, "unfinished"]
    (place / names[0] / "adapter.json").write_text("{")
    assert cli.main(["adapter", "pack", str(place), f"--to={tmp_path / 'other'}"]) == 2
    assert not (tmp_path / "other").exists()


def test_what_is_recorded_of_the_data_goes_along(base, write_adapter, tmp_path, capsys):
    """Own labels, pictures and the vocabulary, of which serving and exports make use."""
    folders = [write_adapter(SINGLE["adalink"], base, seed=seed, routes=["all"]) for seed in (5, 6)]
    tasks = [
        {"name": "mine", "source": {"labels": ["good", "bad"]}},
        {"name": "glue_rte", "images": {"sha256": "f"}},
    ]
    encoder = {"fingerprint": "e"}
    for folder, task in zip(folders, tasks, strict=True):
        record = json.loads((folder / "adapter.json").read_text())
        data = {"tasks": [task], "vocabulary": "v", "lengths": {"inputs": 9, "targets": 4}}
        data |= {"image_encoder": encoder} if "images" in task else {}
        write_record(folder, {**record, "metadata": {"data": data}})
    assert stack(folders, tmp_path / "whole") == 0 == split(tmp_path / "whole", tmp_path / "parts")
    whole = load_adapter(tmp_path / "whole")
    mine, rte = (load_adapter(tmp_path / "parts" / name) for name in ("mine", "glue_rte"))
    assert labels_of(whole, "mine", LABELS) == labels_of(mine, "all", LABELS) == ("good", "bad")
    assert labels_of(whole, "glue_rte", LABELS) == labels_of(rte, "all", LABELS)
    assert labels_of(rte, "all", LABELS) == LABELS["glue_rte"]
    assert [whole.shows_pictures(name) for name in ("mine", "glue_rte")] == [False, True]
    assert (mine.shows_pictures("all"), rte.shows_pictures("all")) == (False, True)
    for adapter in (whole, mine, rte):
        assert adapter.vocabulary == "v" and adapter.image_encoder == encoder
    record = json.loads((folders[1] / "adapter.json").read_text())
    record["metadata"]["data"]["vocabulary"] = "w"
    write_record(folders[1], record)
    assert stack(folders, tmp_path / "again") == 2
    assert "another vocabulary than those before it" in capsys.readouterr().err
    record["metadata"]["data"]["vocabulary"] = "v"
    record["architecture"]["mlp_activations"] = ["gelu"]
    write_record(folders[1], record)
    assert stack(folders, tmp_path / "again") == 2
    assert "is of a base with mlp_activations ('gelu',)" in capsys.readouterr().err
