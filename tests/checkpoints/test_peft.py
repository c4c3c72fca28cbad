"""PEFT's format against peft itself, both ways."""

import dataclasses
import functools
import json
import resource

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from adalink_jax import cli
from adalink_jax.adapters import load
from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.checkpoints import load_adapter, load_base
from adalink_jax.checkpoints.formats.peft import load_peft, save_peft
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.methods.lora import LoRA
from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import T5Config
from tests.methods.toys import blank
from tests.tiers import mostly_slow

CONFIGS = {
    "t5_1_1": T5Config(
        vocab_size=40,
        emb_dim=12,
        num_heads=2,
        num_encoder_layers=3,
        num_decoder_layers=2,
        head_dim=4,
        mlp_dim=16,
        mlp_activations=("gelu", "linear"),
    ),
    "t5_1_0": T5Config(
        vocab_size=40,
        emb_dim=8,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        head_dim=4,
        mlp_dim=16,
        mlp_activations=("relu",),
        logits_via_embedding=True,
    ),
}
# Architecture and settings.
LORAS = {
    "encoder": ("t5_1_0", {}),
    "both stacks": ("t5_1_1", {"stacks": ("encoder", "decoder"), "alpha": 3.0}),
    "layers and linears": ("t5_1_1", {"layers": (1,), "linears": ("attention/value", "mlp/wo")}),
    "decoder, routed": (
        "t5_1_0",
        {"stacks": ("decoder",), "linears": ("*/query",), "routes": 3},
    ),
}


@pytest.fixture(scope="module")
def based():
    """Makes a base of random weights: name in CONFIGS -> (config, params)."""

    @functools.cache
    def make(name):
        return CONFIGS[name], jax.device_get(init_base(CONFIGS[name], jax.random.key(1)))

    return make


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


def random_tree(config, method):
    method, tree = method.export(blank(config, method))
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), tree)


def torch_logits(model, config):
    import torch

    inputs, targets = (torch.tensor(x).long() for x in fixed_inputs(config.vocab_size))
    with torch.no_grad():
        return model(
            input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=targets
        ).logits.numpy()


@pytest.mark.reference
@pytest.mark.parametrize("name", mostly_slow(LORAS, ["decoder, routed"]))
def test_peft_reads_our_lora(based, torch_t5, peft, tmp_path, name):
    config, base = based(LORAS[name][0])
    method = LoRA(rank=2, **LORAS[name][1])
    tree = random_tree(config, method)
    plain = load.logits(config, base)
    np.testing.assert_allclose(torch_logits(torch_t5(config, base), config), plain, atol=1e-4)
    for route in range(method.routes):
        save_peft(tmp_path / str(route), method, tree, route, config, base)
        model = peft.PeftModel.from_pretrained(torch_t5(config, base), tmp_path / str(route))
        found = torch_logits(model, config)
        ours = load.logits(config, merge(base, tree), method, route)
        np.testing.assert_allclose(found, ours, atol=1e-4)
        assert np.abs(ours - plain).max() > 1e-2


# Settings of peft, and of the method that they mean.
PEFTS = [
    (
        {"target_modules": ["q", "v"]},
        {
            "stacks": ("encoder", "decoder"),
            "layers": None,
            "linears": (
                *("attention/query", "attention/value"),
                *("encoder_decoder_attention/query", "encoder_decoder_attention/value"),
                *("self_attention/query", "self_attention/value"),
            ),
        },
    ),
    (
        {"target_modules": r"encoder\..*\.(wo|o)", "use_rslora": True, "lora_alpha": 5},
        {"stacks": ("encoder",), "layers": None, "linears": ("attention/out", "mlp/wo")},
    ),
    (
        {
            "target_modules": ["k"],
            "layers_to_transform": [1],
            "layers_pattern": "block",
            "lora_dropout": 0.25,
        },
        {
            "stacks": ("encoder", "decoder"),
            "layers": (1,),
            "linears": (
                *("attention/key", "encoder_decoder_attention/key"),
                "self_attention/key",
            ),
            "dropout_rate": 0.25,
        },
    ),
    (
        {"target_modules": r"(encoder\.block\.2|decoder\.block\.[01]).*\.(q|wo)$"},
        {
            "stacks": ("encoder", "decoder"),
            "layers": None,
            "linears": (
                *("attention/query", "encoder_decoder_attention/query", "mlp/wo"),
                "self_attention/query",
            ),
        },
    ),
    (
        {
            "target_modules": r"encoder.*\.(q|v)$",
            "bias": "all",
            "rank_pattern": {"q": 3, "encoder.block.1.layer.0.SelfAttention.v": 6},
            "alpha_pattern": {"block.0.layer.0.SelfAttention.q": 20},
            "use_rslora": True,
        },
        {"rank": 6, "stacks": ("encoder",), "layers": None},
    ),
]


@pytest.mark.reference
@pytest.mark.parametrize(
    ("settings", "expected"),
    mostly_slow(PEFTS, [PEFTS[0], PEFTS[-1]]),
    ids=[
        "suffixes", "pattern and rslora", "one layer", "layers differ by stack",
        "ranks, alphas and biases",
    ],
)  # fmt: skip
def test_we_read_pefts_lora(based, torch_t5, peft, tmp_path, settings, expected):
    import torch

    config, base = based("t5_1_1")
    torch.manual_seed(0)
    # Without init_lora_weights its B is random, not zero.
    asked = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, init_lora_weights=False, **settings)
    model = peft.get_peft_model(torch_t5(config, base), asked).eval()
    model.save_pretrained(tmp_path)
    method, tree = load_peft(tmp_path, config, base)
    for name, value in expected.items():
        assert getattr(method, name) == value, name
    load.check_adapter(config, method, tree)
    ours = load.logits(config, merge(base, tree), method)
    np.testing.assert_allclose(torch_logits(model, config), ours, atol=1e-4)
    assert np.abs(ours - load.logits(config, base)).max() > 1e-2


@pytest.mark.reference
def test_peft_reads_our_prompts(based, torch_t5, peft, tmp_path):
    config, base = based("t5_1_0")
    method = METHODS["prompt_tuning"](length=3, bottleneck=4, routes=2)
    tree = random_tree(config, method)
    method, _ = method.export(blank(config, method))
    for route in range(2):
        save_peft(tmp_path / str(route), method, tree, route, config, base)
        model = peft.PeftModel.from_pretrained(torch_t5(config, base), tmp_path / str(route))
        ours = load.logits(config, merge(base, tree), method, route)
        np.testing.assert_allclose(torch_logits(model, config), ours, atol=1e-4)


@pytest.mark.reference
@pytest.mark.parametrize("submodules", [None, 1])
def test_we_read_pefts_prompts(based, torch_t5, peft, tmp_path, submodules):
    config, base = based("t5_1_0")
    asked = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=submodules
    )
    model = peft.get_peft_model(torch_t5(config, base), asked).eval()
    model.save_pretrained(tmp_path)
    method, tree = load_peft(tmp_path, config, base)
    load.check_adapter(config, method, tree)
    ours = load.logits(config, merge(base, tree), method)
    np.testing.assert_allclose(torch_logits(model, config), ours, atol=1e-4)


IA3S = [
    ({}, {}),
    ({"stacks": ("encoder",), "layers": (1,)}, {"stacks": ("encoder",)}),
    ({"feed_forward": False, "routes": 2}, {"feed_forward": False}),
]


@pytest.mark.reference
@pytest.mark.parametrize("version", mostly_slow(CONFIGS, ["t5_1_0"]))
@pytest.mark.parametrize(("settings", "back"), IA3S)
def test_ia3_goes_to_peft_and_back(based, torch_t5, peft, tmp_path, version, settings, back):
    config, base = based(version)
    method = METHODS["ia3"](**settings)
    tree = random_tree(config, method)
    ours = load.logits(config, merge(base, tree), method, method.routes - 1)
    save_peft(tmp_path / "peft", method, tree, method.routes - 1, config, base)
    model = peft.PeftModel.from_pretrained(torch_t5(config, base), tmp_path / "peft")
    np.testing.assert_allclose(torch_logits(model, config), ours, atol=1e-4)
    # Layers that it leaves out come back as scales of one.
    again, found = load_peft(tmp_path / "peft", config, base)
    assert again == METHODS["ia3"](**back)
    np.testing.assert_allclose(load.logits(config, merge(base, found), again), ours, atol=1e-5)
    assert np.abs(ours - load.logits(config, base)).max() > 1e-2


@pytest.mark.reference
def test_ia3_of_other_layers_is_refused(based, torch_t5, peft, tmp_path):
    config, base = based("t5_1_0")
    for number, targets in enumerate((["q", "k", "v", "wo"], ["k", "v", "wi", "wo"])):
        asked = peft.IA3Config(target_modules=targets, feedforward_modules=["wo"])
        peft.get_peft_model(torch_t5(config, base), asked).save_pretrained(tmp_path / str(number))
        with pytest.raises(UserError, match="is no scale of keys"):
            load_peft(tmp_path / str(number), config, base)


@pytest.mark.reference
def test_rslora_keeps_its_scale_and_gates_are_refused(based, torch_t5, peft, tmp_path):
    config, base = based("t5_1_1")
    method = LoRA(rank=4, alpha=3.0, scaling="sqrt_rank")
    tree = random_tree(config, method)
    save_peft(tmp_path / "peft", method, tree, 0, config, base)
    model = peft.PeftModel.from_pretrained(torch_t5(config, base), tmp_path / "peft")
    ours = load.logits(config, merge(base, tree), method)
    np.testing.assert_allclose(torch_logits(model, config), ours, atol=1e-4)
    gated = dataclasses.replace(method, gated=True)
    with pytest.raises(UserError, match="no format for LoRA with gates"):
        save_peft(tmp_path / "gated", gated, random_tree(config, gated), 0, config, base)


def test_a_full_disk_is_one_line_and_leaves_nothing(based, tmp_path):
    """Here a limit of a file's size, which the tensors are over."""
    config, base = based("t5_1_1")
    method = LoRA(rank=2)
    tree = random_tree(config, method)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match="/peft cannot be written: File too large"):
            save_peft(tmp_path / "peft", method, tree, 0, config, base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", mostly_slow(LORAS, ["layers and linears", "decoder, routed"]))
def test_lora_comes_back_as_it_was(based, tmp_path, name):
    config, base = based(LORAS[name][0])
    method = LoRA(rank=2, **LORAS[name][1])
    tree = random_tree(config, method)
    save_peft(tmp_path / "peft", method, tree, method.routes - 1, config, base)
    again, found = load_peft(tmp_path / "peft", config, base)
    assert (again.rank, again.alpha, again.stacks) == (2, method.alpha, method.stacks)
    found = traverse_util.flatten_dict(found, sep="/")
    expected = traverse_util.flatten_dict(tree, sep="/")
    assert found.keys() == expected.keys()
    for leaf, array in found.items():
        np.testing.assert_array_equal(array, np.asarray(expected[leaf])[-1:], err_msg=leaf)


@pytest.fixture
def saved(based, tmp_path):
    """A LoRA on every query of the encoder: (config, base, PEFT's folder)."""
    config, base = based("t5_1_1")
    queries = {
        f"layers_{i}": {"attention": {"query": {"lora": {
            "down": np.ones((1, 12, 2), np.float32), "up": np.ones((1, 2, 8), np.float32)
        }}}}
        for i in range(3)
    }  # fmt: skip
    method = LoRA(rank=2, linears=("attention/query",))
    save_peft(tmp_path / "peft", method, {"encoder": queries}, 0, config, base)
    return config, base, tmp_path / "peft"


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "missing (3): encoder/layers_0/attention/query/dora/magnitude"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ({"rank_pattern": {"q": 4}}, "expected [12, 4], found [12, 2]"),
        ({"rank_pattern": {"(q|v)": 4}}, "rank_pattern is {'(q|v)': 4}; only names"),
        ({"alpha_pattern": {"q": None}}, "lora_alpha is None"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern is ['q']"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"some_new_option": 1}, "some_new_option = 1"),
        ({"init_lora_weights": "pissa"}, "moves the base's own weights"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; LORA, VERA, PEANUT, PROMPT_TUNING, IA3, BEFT"),
        ({"r": 3}, "expected [12, 3], found [12, 2]"),
        ({"r": "two"}, "r is 'two'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_dropout": 2}, "dropout_rate"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "lora_alpha = 16"),
    ],
)
def test_what_has_no_equal_here_is_refused_by_name(saved, changes, words):
    config, base, folder = saved
    edit(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_peft(folder, config, base)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_other_tensors_or_layers_are_refused(saved):
    config, base, folder = saved
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.encoder.block.{}.layer.0.SelfAttention.q.lora_A.weight"

    def save(changes):
        save_file({n: a for n, a in {**tensors, **changes}.items() if a is not None}, path)
        return folder

    def refused(words, config=config, **changes):
        save(changes)
        with pytest.raises(UserError, match=words):
            load_peft(folder, config, base)

    down = tensors[name.format(0)]
    refused("no LoRA of a linear layer", **{"base_model.model.lm_head.lora_A.weight": down})
    refused("missing .*layers_1/attention/query/lora/down", **{name.format(1): None})
    refused("no LoRA of a linear layer", **{name.format(7): down})
    refused("is int32", **{name.format(0): down.astype(np.int32)})
    wo = {
        "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo.lora_A.weight": np.zeros(
            (2, 16), np.float32
        ),
        "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo.lora_B.weight": np.zeros(
            (12, 2), np.float32
        ),
    }
    assert load_peft(save(wo), config, base)[0].linears == ("attention/query", "mlp/wo")
    bias = {"base_model.model.encoder.block.0.layer.0.SelfAttention.q.bias": np.zeros(8, "f4")}
    refused("q.bias' is no LoRA of a linear layer", **bias)
    wide = dataclasses.replace(config, emb_dim=10)
    refused(r"expected \[10, 2\], found \[12, 2\]", config=wide)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_peft(folder, config, base)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="may run code"):
        load_peft(folder, config, base)


def test_methods_that_peft_lacks_are_not_written(based, tmp_path):
    config, base = based("t5_1_0")
    method = METHODS["adalink"](rank=2)
    with pytest.raises(UserError, match="no format for an adapter of method 'adalink'"):
        save_peft(tmp_path / "peft", method, random_tree(config, method), 0, config, base)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_one_over_as_an_adapter_of_its_base(write_base, tmp_path, capsys):
    config = CONFIGS["t5_1_1"]
    folder = write_base(config)
    _, base = load_base(folder)
    method = LoRA(rank=2, linears=("attention/query", "attention/value"))
    save_peft(tmp_path / "peft", method, random_tree(config, method), 0, config, base)
    to = tmp_path / "to"
    command = ["adapter", "import", str(tmp_path / "peft"), f"--base={folder}", f"--to={to}"]
    assert cli.main(command) == 0
    assert "zeros" not in capsys.readouterr().out
    found = load_adapter(tmp_path / "to")
    assert found.method == method
    assert cli.main(["adapter", "verify", str(to), str(folder)]) == 0
    assert cli.main(command) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    # Without a layer it is filled up, which is said.
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(path)
    kept = {name: a for name, a in tensors.items() if ".1.layer.0.SelfAttention.q." not in name}
    save_file(kept, path)
    assert cli.main([*command[:-1], f"--to={tmp_path / 'part'}"]) == 0
    assert "2 of its 12 arrays, 160 bytes, are zeros" in capsys.readouterr().out
