"""Methods against what others compute with the same weights: peft, adapters, written formulas."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.adapters import load
from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.checkpoints import load_base
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.methods.reft import ReFT
from adalink_jax.methods.vera import frozen_pair
from adalink_jax.models.parameters import init_adapter, init_base
from adalink_jax.models.t5 import T5Config, Transformer
from tests.tiers import mostly_slow

BOTH = ("encoder", "decoder")
CONFIG = T5Config(
    vocab_size=40,
    emb_dim=12,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=16,
    mlp_activations=("gelu", "linear"),
)
_BLOCKS = {"SelfAttention": "attention", "EncDecAttention": "encoder_decoder_attention",
           "DenseReluDense": "mlp"}  # fmt: skip
_LAYERS = {"q": "query", "k": "key", "v": "value", "o": "out"}


def place(name: str) -> str:
    """The place of a linear layer that transformers calls by this name."""
    found = re.search(
        r"(encoder|decoder)\.block\.(\d+)\.layer\.\d\.(\w+)\.(q|k|v|o|w[io_01]+)", name
    )
    assert found, name
    stack, number, block, layer = found.groups()
    block = _BLOCKS[block]
    if stack == "decoder" and block == "attention":
        block = "self_attention"
    return f"{stack}/layers_{number}/{block}/{_LAYERS.get(layer, layer)}"


def norm_place(name: str) -> str:
    """The place of a layer norm that transformers calls by this name."""
    if found := re.search(r"(encoder|decoder)\.final_layer_norm", name):
        return f"{found[1]}/{found[1]}_norm"
    found = re.search(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.layer_norm", name)
    assert found, name
    stack, number, index = found.groups()
    kinds = {
        "encoder": ("attention", "mlp"),
        "decoder": ("self_attention", "cross_attention", "mlp"),
    }
    return f"{stack}/layers_{number}/pre_{kinds[stack][int(index)]}_layer_norm"


@pytest.fixture(scope="module")
def base():
    return jax.device_get(init_base(CONFIG, jax.random.key(1)))


@functools.cache
def random_torch():
    import torch

    return torch.Generator().manual_seed(3)


def with_peft(torch_t5, base, config):
    """A model of peft with random trained parameters; returns these by name, and its logits."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return shaken(peft.get_peft_model(torch_t5(CONFIG, base), config).eval())


def shaken(model):
    """Random trained parameters of a model of peft; returns these by name, and its logits."""
    torch = pytest.importorskip("torch")
    trained = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.2 * torch.randn(parameter.shape, generator=random_torch())
                # Scales are near 1, and lengths of columns positive.
                near = "layer_norm" in name or "magnitude" in name or "ia3" in name
                parameter.copy_(parameter * (1 + noise) if near else noise)
                trained[name] = parameter.numpy().copy()
    inputs, targets = (torch.tensor(x).long() for x in fixed_inputs(CONFIG.vocab_size))
    with torch.no_grad():
        logits = model(
            input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=targets
        ).logits.numpy()
    return trained, logits


def check(base, method, leaves, expected, config=CONFIG):
    """Our logits with these leaves are the expected ones, and others than the base's."""
    tree = init_adapter(config, method, base, jax.random.key(0))
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    assert flat.keys() == leaves.keys()
    for name, leaf in flat.items():
        assert leaf.shape == (1, *leaves[name].shape), name
    tree = traverse_util.unflatten_dict({n: x[None] for n, x in leaves.items()}, sep="/")
    found = load.logits(config, merge(base, tree), method)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(found - load.logits(config, base)).max() > 0.05


@pytest.mark.slow
@pytest.mark.reference
def test_ia3_is_pefts(torch_t5, base):
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    trained, logits = with_peft(torch_t5, base, config)
    leaves = {f"{place(n)}/ia3/scale": x.reshape(-1) - 1 for n, x in trained.items()}
    check(base, METHODS["ia3"](), leaves, logits)


@pytest.mark.slow
@pytest.mark.reference
def test_bitfit_is_pefts_befts(torch_t5, base):
    peft = pytest.importorskip("peft")
    names = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
    trained, logits = with_peft(torch_t5, base, peft.BeftConfig(target_modules=names))
    leaves = {f"{place(n)}/bitfit/bias": x.reshape(-1) for n, x in trained.items()}
    check(base, METHODS["bitfit"](), leaves, logits)


@pytest.mark.slow
@pytest.mark.reference
def test_norm_tuning_is_pefts(torch_t5, base):
    peft = pytest.importorskip("peft")
    trained, logits = with_peft(torch_t5, base, peft.LNTuningConfig())
    leaves = {f"{norm_place(n)}/norm_tuning/scale": x - 1 for n, x in trained.items()}
    check(base, METHODS["norm_tuning"](), leaves, logits)


def lora_leaves(trained, scope):
    parts = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude"}
    leaves = {}
    for name, x in trained.items():
        part = next(part for part in parts if part in name)
        leaf = x.reshape(-1) if part == "lora_magnitude_vector" else x.T
        leaves[f"{place(name)}/{scope}/{parts[part]}"] = leaf
    return leaves


@pytest.mark.reference
@pytest.mark.parametrize(
    ("scope", "theirs", "ours"),
    [
        ("dora", {"use_dora": True}, {}),
        pytest.param(
            "lora", {"use_rslora": True}, {"scaling": "sqrt_rank"}, marks=pytest.mark.slow
        ),
    ],
)
def test_dora_and_rslora_are_pefts(torch_t5, base, scope, theirs, ours):
    peft = pytest.importorskip("peft")
    names = ["q", "v", "wi_1", "wo"]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, **theirs)
    trained, logits = with_peft(torch_t5, base, config)
    linears = ("*/query", "*/value", "mlp/wi_1", "mlp/wo")
    method = METHODS[scope](rank=3, alpha=5.0, linears=linears, stacks=BOTH, **ours)
    check(base, method, lora_leaves(trained, scope), logits)


@pytest.mark.slow
@pytest.mark.reference
def test_vera_is_pefts(torch_t5, base):
    """With our A and B, whose first rows and columns the smaller layers take."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    names = ["q", "v", "o", "wi_1", "wo"]
    config = peft.VeraConfig(r=5, target_modules=names, d_initial=0.1)
    model = peft.get_peft_model(torch_t5(CONFIG, base), config).eval()
    width, wide = CONFIG.emb_dim, CONFIG.mlp_dim
    down, up = (np.asarray(x).T for x in frozen_pair(7, 5, width, wide, wide))
    model.base_model.vera_A["default"].copy_(torch.tensor(down))
    model.base_model.vera_B["default"].copy_(torch.tensor(up))
    trained, logits = shaken(model)
    parts = {"lambda_d": "inner", "lambda_b": "outer"}
    leaves = {
        f"{place(n)}/vera/{next(ours for theirs, ours in parts.items() if theirs in n)}": x
        for n, x in trained.items()
    }
    linears = ("*/query", "*/value", "*/out", "mlp/wi_1", "mlp/wo")
    check(base, METHODS["vera"](rank=5, linears=linears, seed=7), leaves, logits)


@pytest.mark.slow
@pytest.mark.reference
def test_peanut_is_pefts(torch_t5, base):
    peft = pytest.importorskip("peft")
    config = peft.PeanutConfig(r=3, target_modules=["q", "v", "wi_1", "wo"])
    trained, logits = with_peft(torch_t5, base, config)
    parts = {"peanut_A": "down", "peanut_B": "up"}
    leaves = {
        f"{place(n)}/peanut/{next(ours for theirs, ours in parts.items() if theirs in n)}": x.T
        for n, x in trained.items()
    }
    linears = ("*/query", "*/value", "mlp/wi_1", "mlp/wo")
    check(base, METHODS["peanut"](rank=3, linears=linears, stacks=BOTH), leaves, logits)


@pytest.mark.slow
@pytest.mark.reference
def test_embedding_lora_is_pefts(torch_t5, base):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["encoder.embed_tokens"])
    trained, logits = with_peft(torch_t5, base, config)
    rows, up = (next(x for n, x in trained.items() if part in n) for part in ("_A", "_B"))
    leaves = {"encoder/embedding_lora/rows": rows.T, "encoder/embedding_lora/up": up.T}
    check(base, METHODS["embedding_lora"](rank=3, alpha=5.0), leaves, logits)


@pytest.mark.slow
@pytest.mark.reference
def test_p_tuning_is_pefts(torch_t5, base):
    peft = pytest.importorskip("peft")
    config = peft.PromptEncoderConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1,
        encoder_hidden_size=5,
    )  # fmt: skip
    trained, logits = with_peft(torch_t5, base, config)
    names = {"embedding.weight": "prompt"}
    for i, layer in enumerate((0, 2, 4), 1):
        names |= {f"mlp_head.{layer}.weight": f"w{i}", f"mlp_head.{layer}.bias": f"b{i}"}
    own = {ours: next(x for n, x in trained.items() if n.endswith(theirs))
           for theirs, ours in names.items()}  # fmt: skip
    leaves = {
        f"encoder/prompt_tuning/{name}": x.T if name.startswith("w") else x
        for name, x in own.items()
    }
    method = METHODS["prompt_tuning"](
        length=3, bottleneck=5, generator="mlp", initialisation="random"
    )
    check(base, method, leaves, logits)


@pytest.mark.slow
@pytest.mark.reference
def test_prefix_tuning_of_the_decoder_is_pefts(torch_t5, base):
    """peft has no prefix elsewhere in a T5."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=8)
    trained, logits = with_peft(torch_t5, base, config)
    (prefix,) = trained.values()  # [P, layers · (keys, values) · width]
    prefix = prefix.reshape(3, 2, 2, -1)
    # It repeats the keys for cross-attention, then divides them by four, so that layer i has those
    # of layer 2·i, counted around.
    leaves = {
        f"decoder/layers_{layer}/self_attention/prefix_tuning/{name}": prefix[:, 2 * layer % 2, i]
        for layer in range(2)
        for i, name in enumerate(("keys", "values"))
    }
    method = METHODS["prefix_tuning"](length=3, blocks="attention", stacks="decoder")
    check(base, method, leaves, logits)


@pytest.fixture(scope="module")
def adapters_golden(shared_data):
    """What the library adapters computed: name → (its tensors, logits); and the base."""
    folder = shared_data / "golden" / "adapters_1_3_0"
    config, params = load_base(folder / "base")

    def read(name):
        with np.load(folder / f"golden_{name}.npz") as arrays:
            return dict(arrays)

    return config, params, read


# The library's name, ours, settings.
BOTTLENECKS = {
    "double_seq_bn": {"blocks": ("attention", "mlp"), "source": "output", "activation": "silu"},
    "seq_bn": {"source": "sum"},
    "par_bn": {"source": "residual", "scale": 4.0},
    "seq_bn_inv": {"source": "sum"},
}


def adapter_leaves(tensors, prefix):
    """The leaves of a bottleneck that the library calls by a prefix."""
    return {
        "down": tensors[f"{prefix}.adapter_down.0.weight"].T,
        "down_bias": tensors[f"{prefix}.adapter_down.0.bias"],
        "up": tensors[f"{prefix}.adapter_up.weight"].T,
        "up_bias": tensors[f"{prefix}.adapter_up.bias"],
    }


@pytest.mark.parametrize("name", mostly_slow(BOTTLENECKS, ["seq_bn_inv"]))
def test_bottlenecks_are_those_of_adapters(adapters_golden, name):
    config, params, read = adapters_golden
    tensors, inputs = read(name), read("in")
    blocks = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "", "mlp")}
    leaves = {}
    for key in tensors:
        if found := re.match(r"((\w+)\.block\.(\d)\.layer\.(\d)\.adapters\.a)\.adapter_up.w", key):
            prefix, stack, number, index = found.groups()
            where = f"{stack}/layers_{number}/{blocks[stack][int(index)]}/bottleneck"
            inner = adapter_leaves(tensors, prefix)
            leaves |= {f"{where}/{leaf}": x for leaf, x in inner.items()}
    rank = next(x.shape[1] for n, x in leaves.items() if n.endswith("/down"))
    method = METHODS["bottleneck"](rank=rank, **BOTTLENECKS[name])
    if name.endswith("inv"):
        method = METHODS["compose"](parts=(METHODS["invertible"](), method))
        for ours, theirs in (("first", "F"), ("second", "G")):
            for leaf, tensor in (("down", "0.weight"), ("down_bias", "0.bias"),
                                 ("up", "2.weight"), ("up_bias", "2.bias")):  # fmt: skip
                key = f"encoder.invertible_adapters.a.{theirs}.{tensor}"
                leaves[f"encoder/invertible/{ours}/{leaf}"] = tensors[key].T
    same_as(tensors, inputs, config, params, method, leaves)


def same_as(tensors, inputs, config, params, method, leaves):
    tree = init_adapter(config, method, params, jax.random.key(0))
    flat = traverse_util.flatten_dict(dict(tree), sep="/")
    assert {n: x.shape[1:] for n, x in flat.items()} == {n: x.shape for n, x in leaves.items()}
    tree = traverse_util.unflatten_dict(
        {n: jnp.asarray(x[None]) for n, x in leaves.items()}, sep="/"
    )
    ids, dec = inputs["ids"].astype(np.int32), inputs["dec"].astype(np.int32)
    found = jax.jit(
        lambda params: Transformer(config, method).apply(
            {"params": params}, ids, dec, np.ones_like(dec), enable_dropout=False
        )
    )(merge(params, tree))
    np.testing.assert_allclose(found, tensors["logits"], atol=2e-5)


@dataclasses.dataclass(frozen=True)
class EditsBoth(ReFT):
    """adapters edits the decoder too, where its first tokens are given."""

    stacks = BOTH


def test_loreft_is_that_of_adapters(adapters_golden):
    config, params, read = adapters_golden
    tensors = read("loreft")
    leaves = {}
    for stack in BOTH:
        for number in range(2):
            unit = f"{stack}.block.{number}.reft_layer.refts.a.units.0"
            where = f"{stack}/layers_{number}/reft"
            leaves[f"{where}/rotation"] = tensors[f"{unit}.projection.W"].T
            leaves[f"{where}/source"] = tensors[f"{unit}.learned_source.weight"].T
            leaves[f"{where}/bias"] = tensors[f"{unit}.learned_source.bias"]
    same_as(tensors, read("in"), config, params, EditsBoth(rank=1, first=3), leaves)


def embedded(base, change):
    """Logits of a base whose encoder embeds each row by a written formula."""
    inputs, targets = fixed_inputs(CONFIG.vocab_size)
    table = base["token_embedder"]["embedding"]
    vectors = np.stack([change(table[row]) for row in inputs])
    extra = vectors.shape[1] - inputs.shape[1]

    class Given(METHODS["translation"]):
        def inputs(self, x, ctx):
            if ctx.stack != "encoder":
                return x, ctx
            return jnp.asarray(vectors), ctx.lengthened(extra)

    return load.logits(CONFIG, base, Given())


def random_leaves(base, method):
    tree = init_adapter(CONFIG, method, base, jax.random.key(0))
    rng = np.random.default_rng(1)
    tree = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), tree)
    return tree, {n: x[0] for n, x in traverse_util.flatten_dict(tree, sep="/").items()}


def test_dept_and_adept_are_their_formulas(base):
    """x' = x + 8/√R · A_t·B, or x + relu(x·A + a)·U + b; then [P; x']."""
    prompt = METHODS["prompt_tuning"](length=3, reparameterise=False, initialisation="random")
    offsets = METHODS["position_offsets"](rank=2, max_length=30)
    network = METHODS["adalink"](rank=2, activation="relu", bias=True)
    for first in (offsets, network):
        method = METHODS["compose"](parts=(first, prompt))
        tree, leaves = random_leaves(base, method)
        own = {name.split("/")[-1]: leaf for name, leaf in leaves.items()}

        def change(x, first=first, own=own):
            if first is offsets:
                x = x + 8 / np.sqrt(2) * own["positions"][: len(x)] @ own["up"]
            else:
                hidden = np.maximum(x @ own["down"] + own["down_bias"], 0)
                x = x + hidden @ own["up"] + own["up_bias"]
            return np.concatenate([own["prompt"], x])

        found = load.logits(CONFIG, merge(base, tree), method)
        np.testing.assert_allclose(found, embedded(base, change), atol=2e-5)


@pytest.mark.slow
def test_published_numbers_of_parameters():
    from adalink_jax.config import gin_files
    from adalink_jax.tools.cost.counts import parameters, stored_parameters

    def count(model, name, *settings):
        config, method = gin_files.shipped(model, name, list(settings))
        return stored_parameters(config, method)

    assert count("flan_t5_base", "dept") == 76_800
    assert count("flan_t5_base", "adept") == 76_051
    # T0-3B has the architecture of T5 1.1 XL (LM-adapted); T-Few's paper says 540K.
    assert count("t5_1_1_xl", "ia3") == 540_672
    expected = {"houlsby": 3_578_112, "bottleneck": 1_789_056, "prefix_tuning": 1_658_880,
                "bitfit": 227_328, "norm_tuning": 47_616, "embedding_lora": 131_584,
                "invertible": 296_064, "reft": 73_776, "ia3": 104_448, "dora": 795_648,
                "translation": 768, "vera": 73_728, "peanut": 761_856, "ulpt": 76_800}  # fmt: skip
    assert {name: count("flan_t5_base", name) for name in expected} == expected
    # ULPT's paper counts what trains: 100 · 2 + 2 · 768.
    assert parameters(*gin_files.shipped("flan_t5_base", "ulpt", [])).trainable == 1_736
