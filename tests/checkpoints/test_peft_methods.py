"""PEFT's formats of DoRA, VeRA, PEANuT, BitFit and norm tuning against peft itself, both ways.

Merged weights are compared, which compiles nothing, and in the long tier logits.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as tried
from safetensors.numpy import load_file, save_file

from adalink_jax import cli
from adalink_jax.adapters import load
from adalink_jax.checkpoints import load_adapter, load_base
from adalink_jax.checkpoints.formats.huggingface import linear_modules, tensor_names
from adalink_jax.checkpoints.formats.peft import load_peft, save_peft
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models.parameters import init_base
from tests.chaos.alterations import altered_json, altered_tensors
from tests.checkpoints.test_adapter_fuzz import FUZZ, refused_or
from tests.checkpoints.test_peft import CONFIGS, edit, random_tree, torch_logits
from tests.tiers import mostly_slow

BOTH = ("encoder", "decoder")
# Of one stack, and not of all layers.
SOME = {"stacks": ("encoder",), "layers": (1,), "linears": ("attention/value", "mlp/wo")}
# Method, settings.
OURS = {
    "dora": ("dora", {"rank": 2, "alpha": 3.0, "dropout_rate": 0.25, "stacks": BOTH}),
    "dora, some": ("dora", {"rank": 2, **SOME}),
    "vera": ("vera", {"rank": 5, "seed": 7, "linears": ("*/query", "*/out", "mlp/*")}),
    "vera, routed": ("vera", {"rank": 3, "seed": 2**32 - 1, "routes": 2, **SOME}),
    "peanut": ("peanut", {"rank": 2, "stacks": BOTH, "activation": "gelu"}),
    "peanut, routed": ("peanut", {"rank": 2, "activation": "identity", "routes": 2, **SOME}),
    "bitfit": ("bitfit", {}),
    "bitfit, routed": ("bitfit", {"routes": 2, **SOME}),
    "norm_tuning": ("norm_tuning", {}),
    "norm_tuning, routed": ("norm_tuning", {"stacks": ("decoder",), "routes": 2}),
}
LAYERS_DIFFER = r"(encoder\.block\.2|decoder\.block\.[01]).*\.(q|wo)$"
# Class of peft, settings, and those of the method that they mean.
THEIRS = {
    "dora": ("LoraConfig", {"use_dora": True}, {"scope": "dora", "rank": 8, "stacks": BOTH}),
    "dora, filled": (
        "LoraConfig",
        {"use_dora": True, "target_modules": LAYERS_DIFFER, "use_rslora": True, "bias": "all",
         "rank_pattern": {"q": 3}, "alpha_pattern": {"block.0.layer.0.SelfAttention.q": 20}},
        {"scope": "dora", "rank": 8, "layers": None},
    ),
    "vera": (
        "VeraConfig",
        {"r": 5, "target_modules": ["q", "v", "wo"], "vera_dropout": 0.25},
        {"scope": "lora", "rank": 5, "alpha": 5.0, "dropout_rate": 0.25, "stacks": BOTH},
    ),
    "vera, filled": (
        "VeraConfig", {"r": 3, "target_modules": LAYERS_DIFFER, "projection_prng_key": 2**32},
        {"scope": "lora", "layers": None},
    ),
    "peanut": (
        "PeanutConfig", {"r": 3, "act_fn": "gelu_new", "scaling": 0.5},
        {"scope": "peanut", "rank": 3, "activation": "gelu"},
    ),
    "peanut, filled": (
        "PeanutConfig", {"r": 3, "act_fn": "silu", "target_modules": LAYERS_DIFFER},
        {"scope": "peanut", "activation": "silu", "layers": None},
    ),
    "beft": ("BeftConfig", {}, {"scope": "bitfit", "stacks": BOTH, "layers": None}),
    "beft, filled": (
        "BeftConfig", {"target_modules": LAYERS_DIFFER}, {"scope": "bitfit", "layers": None},
    ),
    "norms": ("LNTuningConfig", {}, {"scope": "norm_tuning", "stacks": BOTH}),
    "norms, filled": (
        "LNTuningConfig", {"target_modules": ["encoder.block.0.layer.1.layer_norm"]},
        {"scope": "norm_tuning", "stacks": ("encoder",)},
    ),
}  # fmt: skip


@functools.cache
def based(name):
    """A base of random weights and of norms that are not one: name → (config, params)."""
    params = jax.device_get(init_base(CONFIGS[name], jax.random.key(1)))
    rng = np.random.default_rng(2)
    flat = traverse_util.flatten_dict(params, sep="/")
    for leaf, array in flat.items():
        if leaf.endswith("norm/scale"):
            flat[leaf] = rng.uniform(0.5, 2, array.shape).astype(np.float32)
    return CONFIGS[name], traverse_util.unflatten_dict(flat, sep="/")


@functools.cache
def adapted(case):
    """A random adapter of ours, of the first architecture: (method, tree)."""
    name, settings = OURS[case]
    method = METHODS[name](**settings)
    return method, random_tree(CONFIGS["t5_1_1"], method)


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed")


def ours_in_peft(peft, torch_t5, case, version, folder):
    """An adapter of ours: (method, tree, peft's model of its last route)."""
    config, base = based(version)
    name, settings = OURS[case]
    method = METHODS[name](**settings)
    tree = random_tree(config, method)
    save_peft(folder, method, tree, method.routes - 1, config, base)
    return method, tree, peft.PeftModel.from_pretrained(torch_t5(config, base), folder)


def theirs(peft, torch_t5, case, version, folder):
    """An adapter of peft's with random weights, saved by it: its model."""
    import torch

    name, settings, _ = THEIRS[case]
    asked = getattr(peft, name)(task_type="SEQ_2_SEQ_LM", **settings)
    model = peft.get_peft_model(torch_t5(*based(version)), asked).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def check_merged(model, version, method, tree):
    """peft's weights with the adapter merged are ours folded; BitFit merges in neither."""
    config, base = based(version)
    if method.scope == "bitfit":
        found = {name: x.detach().numpy()[0] for name, x in model.named_parameters()
                 if "beft_bias" in name}  # fmt: skip
        flat, modules = traverse_util.flatten_dict(tree, sep="/"), linear_modules(config)
        for place, module in modules.items():
            ours = flat.get(f"{place}/bitfit/bias", np.zeros((1, 1)))[-1]
            theirs = found.pop(f"base_model.model.{module}.beft_bias.default", 0)
            np.testing.assert_allclose(ours, theirs + 0 * ours, atol=1e-7, err_msg=place)
        assert not found
        return
    merged = {name: x.numpy() for name, x in model.merge_and_unload().state_dict().items()}
    folded = traverse_util.flatten_dict(method.fold(base, tree, method.routes - 1), sep="/")
    plain, changed = traverse_util.flatten_dict(base, sep="/"), 0
    for name, (torch_name, transposed) in tensor_names(config).items():
        theirs = merged[torch_name].T if transposed else merged[torch_name]
        np.testing.assert_allclose(folded[name], theirs, atol=2e-6, err_msg=name)
        changed += np.abs(theirs - plain[name]).max() > 1e-3
    assert changed


def check_logits(model, version, method, tree):
    config, base = based(version)
    load.check_adapter(config, method, tree)
    ours = load.logits(config, merge(base, tree), method, method.routes - 1)
    np.testing.assert_allclose(torch_logits(model, config), ours, atol=1e-5)
    assert np.abs(ours - load.logits(config, base)).max() > 1e-2


@pytest.mark.reference
@pytest.mark.parametrize("version", mostly_slow(CONFIGS, ["t5_1_1"]))
@pytest.mark.parametrize("case", mostly_slow(OURS, ["peanut, routed", "norm_tuning"]))
def test_peft_merges_ours_as_we_fold_it(torch_t5, peft, tmp_path, case, version):
    method, tree, model = ours_in_peft(peft, torch_t5, case, version, tmp_path / "peft")
    check_merged(model, version, method, tree)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("version", CONFIGS)
@pytest.mark.parametrize("case", OURS)
def test_peft_computes_what_ours_does(torch_t5, peft, tmp_path, case, version):
    method, tree, model = ours_in_peft(peft, torch_t5, case, version, tmp_path / "peft")
    check_logits(model, version, method, tree)


@pytest.mark.parametrize("case", OURS)
def test_ours_comes_back_as_it_was(tmp_path, case):
    (config, base), (method, tree) = based("t5_1_1"), adapted(case)
    save_peft(tmp_path / "peft", method, tree, method.routes - 1, config, base)
    again, found = load_peft(tmp_path / "peft", config, base)
    assert type(again) is type(method)
    same = {"rank", "alpha", "dropout_rate", "seed", "activation", "stacks", "layers"}
    for field in same & vars(method).keys():
        assert getattr(again, field) == getattr(method, field), field
    expected = traverse_util.flatten_dict(tree, sep="/")
    found = traverse_util.flatten_dict(found, sep="/")
    assert found.keys() == expected.keys()
    for leaf, array in found.items():
        # A norm's change is divided out of its scale again.
        np.testing.assert_allclose(array, expected[leaf][-1:], atol=1e-6 * case.startswith("norm"))


def check_settings(method, case):
    for name, value in THEIRS[case][-1].items():
        assert getattr(method, name) == value, name


@pytest.mark.reference
@pytest.mark.parametrize("version", mostly_slow(CONFIGS, ["t5_1_1"]))
@pytest.mark.parametrize("case", mostly_slow(THEIRS, ["dora, filled", "vera", "beft"]))
def test_we_fold_theirs_as_peft_merges_it(torch_t5, peft, tmp_path, case, version):
    model = theirs(peft, torch_t5, case, version, tmp_path)
    method, tree = load_peft(tmp_path, *based(version))
    check_merged(model, version, method, tree)
    if version == "t5_1_1":
        check_settings(method, case)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("version", CONFIGS)
@pytest.mark.parametrize("case", THEIRS)
def test_we_compute_what_theirs_does(torch_t5, peft, tmp_path, case, version):
    model = theirs(peft, torch_t5, case, version, tmp_path)
    check_logits(model, version, *load_peft(tmp_path, *based(version)))


@pytest.fixture
def saved(tmp_path):
    """Writes a case of ours: its name → PEFT's folder."""

    def write(case):
        (config, base), (method, tree) = based("t5_1_1"), adapted(case)
        folder = tmp_path / case
        shutil.rmtree(folder, ignore_errors=True)
        save_peft(folder, method, tree, 0, config, base)
        return folder

    return write


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("dora", {"use_dora": False}, "no LoRA of a linear layer"),
        ("dora", {"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ("vera", {"r": 4}, "mismatched"),
        ("vera", {"bias": "all"}, "bias = 'all', which has no equal here"),
        ("vera", {"vera_dropout": 2, "projection_prng_key": 0}, "dropout_rate"),
        ("peanut", {"depth": 1}, "depth = 1, which has no equal here"),
        ("peanut", {"act_fn": "gelu"}, "act_fn is 'gelu'; linear, relu, gelu_new, silu, tanh are"),
        ("peanut", {"act_fn": ["relu"]}, "act_fn is ['relu']"),
        ("peanut", {"scaling": None}, "scaling is None"),
        ("bitfit", {"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ("bitfit", {"peft_type": "LN_TUNING"}, "is no scale of a layer norm"),
        ("norm_tuning", {"peft_type": "BEFT"}, "is no bias of a linear layer"),
        ("norm_tuning", {"peft_type": ["LN_TUNING"]}, "peft_type ['LN_TUNING']; LORA, VERA"),
    ],
)
def test_other_settings_are_refused(saved, case, changes, words):
    folder = saved(case)
    edit(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_peft(folder, *based("t5_1_1"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


ENCODER = "base_model.model.encoder.block.0.layer.0"


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("dora", {f"{ENCODER}.SelfAttention.q.lora_magnitude_vector": None}, "missing (1): enc"),
        ("vera", {"base_model.vera_A": None}, "save it with save_projection = True"),
        ("vera", {"base_model.vera_B": np.zeros((15, 5), "f4")}, "at least [5, 16] and [16, 5]"),
        ("vera", {"base_model.vera_A": np.zeros((16,), "f4")}, "vera_A is [16]"),
        ("bitfit", {f"{ENCODER}.SelfAttention.q.beft_bias": np.zeros(8, "f4")}, "mismatched"),
        ("bitfit", {f"x.{ENCODER}.SelfAttention.q.beft_bias": np.zeros((1, 8), "f4")}, "no bias"),
        ("norm_tuning", {f"{ENCODER}.layer_norm.ln_tuning_layers.weight": np.zeros(9, "f4")},
         "expected [12], found [9]"),
        ("norm_tuning", {f"{ENCODER}.SelfAttention.q.ln_tuning_layers.weight": np.zeros(9, "f4")},
         "is no scale of a layer norm"),
    ],
)  # fmt: skip
def test_other_tensors_are_refused(saved, case, changes, words):
    folder = saved(case)
    path = folder / "adapter_model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: array for name, array in tensors.items() if array is not None}, path)
    with pytest.raises(UserError) as caught:
        load_peft(folder, *based("t5_1_1"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_no_factor_changes_a_norm_that_is_zero(saved):
    config, base = based("t5_1_1")
    folder = saved("norm_tuning")
    base = jax.tree.map(np.copy, base)
    base["decoder"]["decoder_norm"]["scale"][3] = 0
    with pytest.raises(UserError, match="decoder/decoder_norm has a scale that is zero"):
        load_peft(folder, config, base)


def test_ours_shares_no_key_with_pefts_veras(saved):
    """peft lets the adapters of one key in a model share the matrices of the first."""
    folder = saved("vera")
    record = json.loads((folder / "adapter_config.json").read_text())
    assert record["projection_prng_key"] == 2**32 + 7
    edit(folder, projection_prng_key=2**32 + 8)  # Of another seed: the same function as a LoRA.
    method, _ = load_peft(folder, *based("t5_1_1"))
    assert (method.scope, method.rank, method.alpha) == ("lora", 5, 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dora, some", "vera", "peanut", "bitfit", "norm_tuning"])
@tried(**{**FUZZ, "max_examples": 100, "suppress_health_check": [*HealthCheck]})
@given(data=strategies.data())
def test_altered_ones_are_refused_or_fit(saved, case, data):
    config, base = based("t5_1_1")
    folder = saved(case)
    record, tensors = (folder / "adapter_config.json", folder / "adapter_model.safetensors")
    if data.draw(strategies.booleans()):
        tensors.write_bytes(altered_tensors(data.draw, tensors.read_bytes()))
    else:
        record.write_text(json.dumps(altered_json(data.draw, json.loads(record.read_text()))))
    found = refused_or(lambda: load_peft(folder, config, base))
    if found is not None:
        load.check_adapter(config, *found)


@pytest.mark.slow
def test_the_command_imports_what_its_export_wrote(write_base, write_adapter, tmp_path, capsys):
    folder = write_base(CONFIGS["t5_1_1"])
    given = write_adapter(METHODS["norm_tuning"](stacks=("decoder",)), folder)
    written, to = tmp_path / "peft", tmp_path / "to"
    paths = [f"--adapter={given}", f"--base={folder}", f"--to={written}"]
    assert cli.main(["export", "--format=peft", *paths]) == 0
    assert cli.main(["adapter", "import", str(written), f"--base={folder}", f"--to={to}"]) == 0
    assert "NormTuning(stacks=('decoder',)" in capsys.readouterr().out
    config, base = load_base(folder)
    found, expected = load_adapter(to), load_adapter(given)
    assert found.method == expected.method
    for ours, theirs in zip(*map(jax.tree.leaves, (found.tree, expected.tree)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
