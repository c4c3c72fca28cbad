"""export.py: what it writes, run by transformers, by jax alone and by this project."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.export
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax import cli
from adalink_jax.adapters import export, load
from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.checkpoints import load_base, open_base, save_base
from adalink_jax.methods import METHODS
from adalink_jax.models import decoding
from adalink_jax.models.t5 import T5Config, Transformer
from tests.tiers import mostly_slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = {
    "t5_1_1": T5Config(
        vocab_size=3000,
        emb_dim=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=40,
        mlp_activations=("gelu", "linear"),
    ),
    "t5_1_0": T5Config(
        vocab_size=40,
        emb_dim=12,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        head_dim=8,
        mlp_dim=16,
        mlp_activations=("relu",),
        logits_via_embedding=True,
    ),
}
ADALINK = METHODS["adalink"](rank=2, activation="gelu", routes=3)
LORA = METHODS["lora"](rank=2, stacks=("encoder", "decoder"), layers=(0,))

# Each method and each kind of network once in the short tier.
BOTH = pytest.mark.parametrize(
    ("method", "name"),
    mostly_slow(
        [(method, name) for method in (ADALINK, LORA) for name in CONFIGS],
        [(ADALINK, "t5_1_1"), (LORA, "t5_1_0")],
    ),
    ids=lambda value: value if isinstance(value, str) else value.scope,
)


@pytest.fixture(scope="module")
def base(write_base):
    return functools.cache(lambda name: write_base(CONFIGS[name]))


@pytest.fixture
def run(capsys, tmp_path):
    """Exports: (exit code, target, output, errors)."""

    def call(adapter, base, format, to="exported", **arguments):
        target = tmp_path / to
        flags = {"adapter": adapter, "base": base, "to": target, "format": format, **arguments}
        given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        code = cli.main(["export", *given])
        return code, target, *capsys.readouterr()

    return call


def torch_logits(model, config):
    import torch

    inputs, targets = (torch.tensor(x).long() for x in fixed_inputs(config.vocab_size))
    with torch.no_grad():
        return model(
            input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=targets
        ).logits.numpy()


@pytest.mark.reference
@BOTH
def test_transformers_runs_a_folded_model_as_it_is(run, base, write_adapter, name, method):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = write_adapter(method, base(name))
    adaptation = load.load_adaptation(folder, base(name))
    number = len(adaptation.routes) - 1
    code, target, out, errors = run(folder, base(name), "huggingface", route=f"task_{number}")
    assert (code, errors) == (0, "")
    model, report = transformers.T5ForConditionalGeneration.from_pretrained(
        target, output_loading_info=True
    )
    assert not any(report.values()), report
    expected = adaptation.logits(number)
    plain = load.logits(adaptation.config, adaptation.base)
    assert np.abs(expected - plain).max() > 1e-2
    found = torch_logits(model.eval(), adaptation.config)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    own_table = method is ADALINK
    tables = (model.encoder.embed_tokens.weight, model.shared.weight)
    assert (tables[0] is not tables[1]) == own_table
    assert model.decoder.embed_tokens.weight is model.shared.weight
    assert ("transformers 4" in out) == own_table
    assert "cast to bfloat16, a logit changes by up to" in out


@BOTH
def test_a_folded_t5x_checkpoint_is_a_base(run, base, write_adapter, name, method):
    folder = write_adapter(method, base(name))
    adaptation = load.load_adaptation(folder, base(name))
    code, target, out, _ = run(folder, base(name), "t5x", route="task_0")
    assert code == 0
    config, params = load_base(target)
    assert config.separate_encoder_embedding == (method is ADALINK)
    assert ("T5X's own minimal network does not know" in out) == (method is ADALINK)
    found = load.logits(config, params)
    np.testing.assert_allclose(found, adaptation.logits(0), atol=1e-5)
    # The change by a cast is that of the folded model, not of the base.
    cast = jax.tree.map(lambda x: x.astype("bfloat16").astype(np.float32), params)
    moved = np.abs(load.logits(config, cast) - adaptation.logits(0)).max()
    said = float(out.split("changes by up to ")[1].split()[0])
    assert said == pytest.approx(moved, rel=0.05) and said > 1e-3


def test_a_full_fine_tuning_is_written_as_it_is(run, base, write_adapter, tmp_path):
    folder = write_adapter(METHODS["full"](), base("t5_1_0"))
    code, target, out, _ = run(folder, base("t5_1_0"), "t5x")
    assert code == 0 and "off by at most 0 " in out
    found = traverse_util.flatten_dict(load_base(target)[1], sep="/")
    for name, array in traverse_util.flatten_dict(load_base(folder)[1], sep="/").items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    # From a Hugging Face base, the tokenizer comes along.
    save_base(tmp_path / "hf", open_base(base("t5_1_0")), "huggingface")
    (tmp_path / "hf" / "spiece.model").write_bytes(b"pieces")
    code, target, out, _ = run(folder, tmp_path / "hf", "huggingface", to="copy")
    assert code == 0 and "its tokenizer is the source's: spiece.model" in out
    assert (target / "spiece.model").read_bytes() == b"pieces"


def test_lora_is_written_for_peft(run, base, write_adapter):
    from adalink_jax.checkpoints.formats.peft import load_peft

    folder = write_adapter(LORA, base("t5_1_1"))
    code, target, out, _ = run(folder, base("t5_1_1"), "peft")
    assert code == 0 and "off by at most" in out
    method, _ = load_peft(target, *load_base(base("t5_1_1")))
    assert (method.rank, method.alpha, method.stacks) == (2, 16.0, ("encoder", "decoder"))


def test_what_cannot_be_written_is_said_and_leaves_nothing(run, base, write_adapter, monkeypatch):
    name = "t5_1_0"
    routed = write_adapter(ADALINK, base(name), routes=["rte", "cola", "mrpc"])
    prompt = write_adapter(METHODS["prompt_tuning"](length=2), base(name))
    decoder = write_adapter(METHODS["adalink"](rank=1, stacks=("decoder",)), base(name))
    lora = write_adapter(LORA, base(name))
    for adapter, format, route, words in [
        (routed, "t5x", None, "needs one of its routes; its routes are rte, cola, mrpc"),
        (routed, "t5x", "colla", "has no route 'colla'; did you mean 'cola'?"),
        (routed, "peft", "rte", "PEFT has no format for an adapter of method 'adalink'"),
        (routed, "stablehlo", "rte", "leave --route out"),
        (prompt, "huggingface", None, "prompt tuning cannot be folded"),
        (decoder, "huggingface", None, "cannot be folded: the decoder's token table"),
    ]:
        code, target, out, errors = run(adapter, base(name), format, route=route)
        assert (code, out) == (2, "")
        assert errors.startswith("error: ") and words in errors and errors.count("\n") == 1
        assert not list(target.parent.iterdir())
    code, target, _, _ = run(lora, base(name), "t5x")
    before = sorted(path.stat().st_mtime_ns for path in target.rglob("*"))
    for format in export.FORMATS:
        code, _, _, errors = run(lora, base(name), format)
        assert code == 2 and "exists and is not overwritten" in errors
    assert before == sorted(path.stat().st_mtime_ns for path in target.rglob("*"))
    # A fold that is wrong is found out, and not left behind.
    fold = METHODS["lora"].fold
    half = lambda self, *args: fold(dataclasses.replace(self, alpha=8.0), *args)  # noqa: E731
    monkeypatch.setattr(METHODS["lora"], "fold", half)
    for format in ("huggingface", "t5x"):
        code, target, _, errors = run(lora, base(name), format, to="wrong")
        assert code == 2 and "is not written: what it computes is off by" in errors
    assert [path.name for path in target.parent.iterdir()] == ["exported"]


PROGRAMS = {
    "adalink": ADALINK,
    "lora": METHODS["lora"](rank=2, stacks=("encoder", "decoder"), routes=2),
    "prompt_tuning": METHODS["prompt_tuning"](length=3, reparameterise=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_serve_any_adapter_batch_and_length(run, base, write_adapter, name):
    method = PROGRAMS[name]
    folders = [write_adapter(method, base("t5_1_1"), seed=seed) for seed in (1, 2)]
    code, target, out, errors = run(folders[0], base("t5_1_1"), "stablehlo")
    assert code == 0, errors
    signature = json.loads((target / "signature.json").read_text())
    call = {
        program: jax.jit(jax.export.deserialize((target / entry["file"]).read_bytes()).call)
        for program, entry in signature["programs"].items()
    }
    rng = np.random.default_rng(0)
    model = Transformer(CONFIGS["t5_1_1"], method)
    flat_base = flat(load_base(base("t5_1_1"))[1])
    assert {n: list(a.shape) for n, a in flat_base.items()} == signature["base"]
    weights = sum(array.nbytes for array in flat_base.values())
    assert all(path.stat().st_size < weights / 4 for path in target.glob("*.stablehlo"))
    encode = jax.jit(
        lambda params, inputs, routes: model.apply(
            {"params": params}, inputs, enable_dropout=False, encoder_routes=routes, method="encode"
        )
    )
    results = []
    for folder in folders:
        adaptation = load.load_adaptation(folder, base("t5_1_1"))
        adapter = flat(adaptation.adapter.tree)
        assert {n: list(a.shape) for n, a in adapter.items()} == signature["adapter"]
        for rows, length, count, longest in ((2, 5, 3, 4), (3, 9, 2, 7)):
            inputs = rng.integers(3, 3000, (rows, length)).astype(np.int32)
            inputs[0, 3:] = 0
            options = rng.integers(3, 3000, (count, longest)).astype(np.int32)
            options[0, 2:] = 0
            routes = np.arange(rows, dtype=np.int32) % len(adaptation.routes)
            given = (flat_base, adapter, inputs, routes)
            encoded = encode(adaptation.params, inputs, np.repeat(routes[:, None], length, axis=1))
            np.testing.assert_allclose(call["encode"](*given), encoded, atol=1e-5)
            scored = decoding.score_options(model, adaptation.params, inputs, options, routes)
            found = call["score"](*given, options)
            np.testing.assert_allclose(found, scored, atol=1e-4)
            results.append(np.asarray(found))
            tokens = decoding.greedy(model, adaptation.params, inputs, longest, routes=routes)
            blank = np.zeros(longest, np.int32)
            np.testing.assert_array_equal(call["greedy"](*given, blank), tokens)
    assert results[0].shape == (2, 3) and results[1].shape == (3, 2)


@pytest.mark.slow
def test_a_base_with_images_is_folded_and_exported_with_them(run, write_base, write_adapter):
    config = dataclasses.replace(CONFIGS["t5_1_1"], image_width=5)
    folder = write_base(config)
    method = METHODS["adalink"](rank=2, routes=2, by_modality=True, image_rank=3)
    adapter = write_adapter(method, folder)
    adaptation = load.load_adaptation(adapter, folder)
    code, target, _, errors = run(adapter, folder, "t5x", route="task_1")
    assert (code, errors) == (0, "")
    found, params = load_base(target)
    assert (found.image_width, found.separate_encoder_embedding) == (5, True)
    np.testing.assert_allclose(load.logits(found, params), adaptation.logits(1), atol=1e-4)
    code, target, _, errors = run(adapter, folder, "stablehlo", to="programs")
    assert (code, errors) == (0, "")
    signature = json.loads((target / "signature.json").read_text())
    arguments = signature["programs"]["encode"]["arguments"]
    assert [(one["name"], one["dtype"]) for one in arguments[2:]] == [
        ("inputs", "int32"), ("routes", "int32"), ("images", "float32"), ("image_mask", "int32")
    ]  # fmt: skip
    rng = np.random.default_rng(3)
    inputs = rng.integers(3, 3000, (3, 4)).astype(np.int32)
    routes, mask = np.array([1, 0, 1], np.int32), np.ones((3, 7), np.int32)
    images = rng.normal(size=(3, 7, 5)).astype(np.float32)
    arrays = [flat(tree) for tree in (adaptation.base, adaptation.adapter.tree)]
    program = jax.export.deserialize(bytearray((target / "greedy.stablehlo").read_bytes()))
    tokens = program.call(*arrays, inputs, routes, np.zeros(5, np.int32), images, mask)
    expected = decoding.greedy(
        Transformer(config, method), adaptation.params, inputs, 5, routes=routes,
        encoder_images=images,
    )  # fmt: skip
    np.testing.assert_array_equal(tokens, expected)
    for form, says in (("huggingface", "takes images"), ("peft", "takes images")):
        code, _, _, errors = run(adapter, folder, form, to=form, route="task_1")
        assert code == 2 and says in errors and len(errors.splitlines()) == 1


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_programs_are_for_all_platforms_and_say_their_arguments(run, base, write_adapter):
    folder = write_adapter(ADALINK, base("t5_1_0"))
    _, target, _, _ = run(folder, base("t5_1_0"), "stablehlo")
    signature = json.loads((target / "signature.json").read_text())
    assert signature["method"] == {
        "name": "adalink",
        **ADALINK.settings(),
        "stacks": ["encoder"],
    }
    shapes = {}
    for name, entry in signature["programs"].items():
        program = jax.export.deserialize((target / entry["file"]).read_bytes())
        assert set(program.platforms) == {"cpu", "cuda", "tpu"} == set(signature["platforms"])
        shapes[name] = [argument.get("shape") for argument in entry["arguments"]]
        assert entry["result"]["shape"] == [str(n) for n in program.out_avals[0].shape]
    assert shapes == {
        "encode": [None, None, ["b", "t"], ["b"]],
        "score": [None, None, ["b", "t"], ["b"], ["c", "l"]],
        "greedy": [None, None, ["b", "t"], ["b"], ["l"]],
    }
    assert signature["programs"]["score"]["result"] == {"dtype": "float32", "shape": ["b", "c"]}
