"""The shipped gin files: each is whole, says what it is, and sets only its own keys."""

import functools
import math
import re
import types

import gin
import jax
import jax.numpy as jnp
import pytest

from adalink_jax.config import gin_files
from adalink_jax.config.records import ENVIRONMENT
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.runs.options import recorded
from tests.tiers import mostly_slow

FOLDER = gin_files.gin_folder()
KINDS = ("models", "methods", "optimizers", "schedules", "runs", "experiments", "hardware")
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.gin"))
MODELS = [name for name in FILES if name.startswith("models/")]
HARDWARE = [name for name in FILES if name.startswith("hardware/")]
EXPERIMENTS = [name for name in FILES if name.startswith("experiments/")]
# Which command runs what includes a run file, and the function that it calls.
SCRIPTS = {"runs/finetune.gin": ("train", "train"), "runs/eval.gin": ("eval", "evaluate")}
# A line that sets something, and what it sets.
SETTING = re.compile(r"^([\w./]+) *= *(.*?)(?: *#.*)?$", re.MULTILINE)
SUPPLIED = ("configuration", "json")


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def settings(name: str) -> list[tuple[str, str]]:
    """What a file sets; a declaration of a required value is no setting."""
    return [(k, v) for k, v in SETTING.findall(text_of(name)) if v != "%gin.REQUIRED"]


def header(name: str) -> dict[str, list[str]]:
    """The macros that a file's header names as provided, required and commonly overridden."""
    text = " ".join(re.findall(r"^# *(.*)$", text_of(name).partition("\n\n")[0], re.MULTILINE))
    pattern = r"Provides: (.*) Requires: (.*) Commonly overridden: (.*)"
    found = re.search(pattern, text.partition("from __gin__")[0])
    assert found, f"{name} opens with Provides, Requires and Commonly overridden, in this order"
    names = ("provides", "requires", "overridden")
    return {
        key: re.findall(r"\b[A-Z][A-Z_]{2,}\b", part)
        for key, part in zip(names, found.groups(), strict=True)
    }


def included(name: str) -> list[str]:
    """The files that a file includes, and those that they include."""
    inner = re.findall(r"^include '(.*)'$", text_of(name), re.MULTILINE)
    return list(dict.fromkeys([*inner, *(file for one in inner for file in included(one))]))


def given(*names: str) -> list[str]:
    """Values for all that files require and do not set."""
    declared = re.findall(r"^(\w+) = %gin.REQUIRED", "\n".join(map(text_of, names)), re.MULTILINE)
    set_here = {key for name in names for key, _ in settings(name)}
    values = {"TASK_FEATURE_LENGTHS": "{'inputs': 8, 'targets': 4}", "TRAIN_STEPS": "3"}
    return [f"{key}={values.get(key, 'given')}" for key in declared if key not in set_here]


def read(entry: str, *files: str, more: tuple[str, ...] = ()) -> gin_files.Configuration:
    whole = [*files, *(inner for name in files for inner in included(name))]
    bindings = [*given(*whole), *more]
    return gin_files.read(f"adalink_jax.runs.{entry}", files, bindings, supplied=SUPPLIED)


def script_and_entry(name: str) -> tuple[str, str]:
    (run_file,) = set(SCRIPTS) & set(included(name))
    return SCRIPTS[run_file]


TRAINING = [name for name in EXPERIMENTS if script_and_entry(name)[1] == "train"]
# Experiments of any method, which the user names beside them.
SHARED = tuple(
    f"experiments/{name}.gin" for name in ("english", "glue", "mini", "mini_images", "own_data")
)


def test_files_are_of_known_kinds():
    assert {name.partition("/")[0] for name in FILES} <= set(KINDS)
    # T5X reads gin/t5x by itself: tests/t5x/test_t5x_gin_files.py.
    assert len(FILES) == len(set(FOLDER.rglob("*.gin")) - set(FOLDER.glob("t5x/**/*.gin")))
    assert not (FOLDER / "__init__.py").exists()  # It would hide the gin package in a checkout.
    assert "config" in dir(gin)


@pytest.mark.parametrize("name", FILES)
def test_header_names_what_the_file_sets_and_needs(name):
    macros = {key for key, _ in settings(name) if "." not in key}
    stated = header(name)
    assert set(stated["provides"]) == macros
    assert {binding.partition("=")[0] for binding in given(name)} <= set(stated["requires"])


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_library_include_only_files_of_their_kind(name):
    kind = name.partition("/")[0]
    assert name in EXPERIMENTS or {inner.partition("/")[0] for inner in included(name)} <= {kind}
    keys = [key for key, _ in settings(name)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_one_file_of_each_kind(name):
    """The library files of an experiment set different keys; only the experiment overrides them."""
    library = [inner for inner in included(name) if inner not in SHARED]
    kinds = [inner.partition("/")[0] for inner in library]
    assert len(kinds) == len(set(kinds)) and set(kinds) <= set(KINDS) - {"experiments"}
    keys = [key for inner in library for key, _ in settings(inner)]
    assert len(keys) == len(set(keys))
    assert len(included(name)) + len(settings(name)) <= 25
    assert f"adalink {script_and_entry(name)[0]} --gin_file={name}" in text_of(name)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_need_what_their_headers_say(name):
    required = {binding.partition("=")[0] for binding in given(name, *included(name))}
    assert required == set(header(name)["requires"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_macro_of_an_experiment_is_read(name):
    """Against the text alone: what is set appears behind a % somewhere."""
    files = [name, *included(name)]
    whole = "\n".join(map(text_of, files))
    macros = {key for file in files for key, _ in settings(file) if "." not in key}
    macros -= set(ENVIRONMENT)  # These are read from the environment.
    assert macros <= set(re.findall(r"%(\w+)", whole))
    # And from the entry: whatever the library files offer reaches the call.
    more = ["methods/lora.gin"] if name in SHARED else []
    known = read(script_and_entry(name)[1], name, *more)
    assert macros <= {key for key in known.origins if "." not in key}


@pytest.mark.parametrize("name", TRAINING)
def test_experiments_build_what_they_name(name):
    files = [name, "methods/lora.gin"] if name in SHARED else [name]
    arguments = gin_files.build(read("train", *files))
    chosen = [file for file in (*files, *included(name)) if file.startswith("methods/")]
    method = chosen[0].removeprefix("methods/").removesuffix(".gin")
    # What is no method's name is a recipe of several.
    assert type(arguments["method"]) is METHODS.get(method, METHODS["compose"])
    model = arguments["model"]
    assert model is None or isinstance(model, T5Config)
    assert 0 < arguments["learning_rate"](1000) < 1
    # The optimizer takes a schedule. For full fine-tuning alone, updates are scaled by the weights.
    weights = {"a": jnp.full((4,), 10.0)}
    transformation = arguments["optimizer"](lambda step: 0.5)
    updates, _ = transformation.update(weights, transformation.init(weights), weights)
    expected = 0.5 * (10.0 if method == "full" else 1.0)
    assert float(jnp.abs(updates["a"]).max()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_resolved_text_alone_gives_the_same_run(name, tmp_path):
    more = ["methods/lora.gin"] if name in SHARED else []
    known = read(script_and_entry(name)[1], name, *more)
    path = tmp_path / "config.gin"
    path.write_text(known.text)
    again = gin_files.read(known.entry, [str(path)], supplied=SUPPLIED)
    assert again.values == known.values


# Devices and devices of a slice of the hardware, as its makers name it.
SIZES = types.MappingProxyType(
    {
        **{"tpu_v4_8": (4, 4), "tpu_v5e_2x2": (4, 4), "tpu_v5e_2x4": (8, 8)},
        **{"tpu_v5e_4x8": (32, 32), "tpu_v5p_1": (1, 1), "tpu_v5p_2x2x2": (8, 8)},
        **{"tpu_v6e_1": (1, 1), "tpu_v6e_2x2": (4, 4), "tpu_v6e_4x4": (16, 16)},
        **{"gpu_1": (1, 1), "gpu_8": (8, 8), "gpu_16": (16, 8), "gpu_64": (64, 8)},
    }
)


def test_hardware_is_that_of_the_list():
    assert {f"hardware/{name}.gin" for name in SIZES} == set(HARDWARE)


@pytest.mark.parametrize("name", HARDWARE)
def test_hardware_sets_where_things_lie_and_their_types_alone(name):
    places = ("devices", "model_parallelism", "fully_sharded", "slices", "dtype", "frozen_dtype")
    keys = [key for key, _ in settings(name)]
    groups = 4 * ["Layout"] + 2 * ["Precision"]
    assert keys == [f"options.{group}.{place}" for group, place in zip(groups, places, strict=True)]
    values = {entry: read(entry, *files, name).values for entry, files in (
        ("train", ("experiments/glue_adalink.gin",)),
        ("evaluate", ("runs/eval.gin", "experiments/glue_adalink.gin")),
    )}  # fmt: skip
    flat = map(recorded, values.values())
    found = [{place: given[place] for place in places} for given in flat]
    assert found[0] == found[1]
    devices, of_slice = SIZES[name.removeprefix("hardware/").removesuffix(".gin")]
    assert (found[0]["devices"], devices // found[0]["slices"]) == (devices, of_slice)
    assert of_slice % found[0]["model_parallelism"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_file_that_builds_it(method):
    file = f"methods/{method}.gin"
    arguments = gin_files.build(read("describe", "runs/describe.gin", "models/mini.gin", file))
    assert type(arguments["method"]) is METHODS[method]


def test_methods_have_their_papers_settings():
    arguments = {
        name: gin_files.build(
            read("train", "runs/finetune.gin", f"methods/{name}.gin", "models/mini.gin")
        )
        for name in ("adalink", "lora", "prompt_tuning", "full")
    }
    rates = {name: float(given["learning_rate"](10)) for name, given in arguments.items()}
    assert rates == pytest.approx(
        {"adalink": 1e-3, "lora": 1e-3, "prompt_tuning": 0.03, "full": 1e-3}
    )
    assert arguments["adalink"]["method"].rank == arguments["lora"]["method"].rank == 4
    assert arguments["prompt_tuning"]["method"].length == 64
    assert arguments["adalink"]["dropout_rate"] == 0.1


@pytest.mark.parametrize("name", [f for f in FILES if re.match("optimizers/|schedules/", f)])
def test_optimizers_and_schedules_go_after_any_method(name):
    """And replace what its file says: here the rate of prompt tuning, and Adafactor."""
    kind, _, stem = name.removesuffix(".gin").partition("/")
    files = ("runs/finetune.gin", "methods/prompt_tuning.gin", name, "models/mini.gin")
    known = read("train", *files, more=("TRAIN_STEPS=300",))
    arguments = gin_files.build(known)
    weights = {"a": jnp.full((2, 2), 10.0)}
    transformation = arguments["optimizer"](lambda step: 0.5)
    updates, _ = transformation.update(weights, transformation.init(weights), weights)
    if kind == "optimizers":
        assert known.values["optimizer"]["@partial"] == f"adalink_jax.training.optimizers.{stem}"
        decayed = {"adamw": 0.01, "lion": 0.1}.get(stem, 0.0)
        first = 10.0 if stem == "sgd" else 1.0  # All the others' first step is as their rate.
        expected = -0.5 * (first + 10 * decayed)
        assert float(updates["a"][0, 0]) == pytest.approx(expected, rel=1e-3)
        return
    rates = [float(arguments["learning_rate"](step)) for step in (0, 50, 100, 200, 300)]
    falls = {
        **{"constant": (1, 1), "linear": (0.5, 0), "cosine": (0.5, 0)},
        "inverse_square_root": (0.5**0.5, (1 / 3) ** 0.5),
    }[stem]
    assert rates == pytest.approx([0.03 * factor for factor in (0, 0.5, 1, *falls)], abs=1e-8)


def test_scores_and_descriptions_take_an_experiments_files():
    values = read("evaluate", "runs/eval.gin", "experiments/glue_adalink.gin").values
    assert values["adapter_path"] == values["output_dir"] == "given"
    assert values["data"]["task_feature_lengths"] == {"inputs": 512, "targets": 16}
    values = read("describe", "runs/describe.gin", "experiments/glue_lora.gin").values
    assert values["method"]["@"] == "adalink_jax.methods.lora.LoRA"


def model_of(name: str) -> T5Config:
    full = "methods/full.gin"
    return gin_files.build(read("describe", "runs/describe.gin", full, name))["model"]


@functools.cache
def initialised(model: T5Config) -> int:
    """The number of parameters that the network makes, without making them."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    initialise = functools.partial(Transformer(model).init, jax.random.key(0))
    shapes = jax.eval_shape(initialise, tokens, tokens, tokens)["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def parameters(c: T5Config) -> int:
    """T5's number of parameters, by hand.

    Per layer: attention 4·D·N·K, twice in the decoder; MLP 3·D·F where gated, else 2·D·F; a norm
    of D in front of each. Per stack: a norm, and 32 buckets of N biases once or for each layer. The
    table, and the output layer where it is not the table.
    """
    attention = 4 * c.emb_dim * c.num_heads * c.head_dim
    mlp = (len(c.mlp_activations) + 1) * c.emb_dim * c.mlp_dim
    encoder = c.num_encoder_layers * (attention + mlp + 2 * c.emb_dim)
    decoder = c.num_decoder_layers * (2 * attention + mlp + 3 * c.emb_dim)
    layers = c.num_encoder_layers + c.num_decoder_layers
    biases = layers if c.relpos_bias_per_layer else 2
    stacks = 2 * c.emb_dim + biases * 32 * c.num_heads
    tables = (1 if c.logits_via_embedding else 2) * c.vocab_size * c.emb_dim
    images = 0 if c.image_width is None else (c.image_width + 1) * c.emb_dim
    return encoder + decoder + stacks + tables + images


# As counted in the public checkpoints by other software.
PUBLIC = types.MappingProxyType(
    {
        "t5_1_0_small": 60_506_624,
        "t5_1_0_base": 222_903_552,
        "t5_1_0_large": 737_668_096,
        "t5_1_0_3b": 2_851_598_336,
        "t5_1_0_11b": 11_307_321_344,
        "t5_1_1_small": 76_961_152,
        "t5_1_1_base": 247_577_856,
        "t5_1_1_large": 783_150_080,
        "t5_1_1_xl": 2_849_757_184,
        "t5_1_1_xxl": 11_135_332_352,
    }
)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        MODELS, [m for m in MODELS if not re.search("_(base|large|xl|xxl|3b|11b|x).gin", m)]
    ),
)
def test_models_have_the_parameters_that_their_headers_state(name):
    stated = int(re.match(r"# .*: ([\d,]+) parameters\.\n", text_of(name))[1].replace(",", ""))
    model = model_of(name)
    assert parameters(model) == stated
    assert initialised(model) == stated
    public = name.removeprefix("models/").removesuffix(".gin").replace("flan_t5", "t5_1_1")
    assert PUBLIC.get(public, stated) == stated


@pytest.mark.parametrize("size", ["small", "base", "large", "xl", "xxl"])
def test_flan_differs_from_t5_1_1_in_name_alone(size):
    flan = f"models/flan_t5_{size}.gin"
    assert included(flan) == [f"models/t5_1_1_{size}.gin"] and not settings(flan)


def test_the_mini_base_holds_the_mini_vocabulary():
    tasks = pytest.importorskip("tasks", reason="SeqIO is not installed")
    assert tasks.MINI_VOCABULARY.vocab_size <= model_of("models/mini.gin").vocab_size
