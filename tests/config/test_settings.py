"""Every setting of every command with every kind of wrong value: accepted, or refused in one line.

What each setting takes is said here by hand, and not read from the annotations that are tested,
but for the fields of later methods.
"""

import dataclasses
import functools
import inspect
import pathlib
import typing

import numpy as np
import pytest

import adalink_jax as al
from adalink_jax import runs
from adalink_jax.config import gin_files, reader
from adalink_jax.config.macros import macros
from adalink_jax.config.records import ENVIRONMENT
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Layers, RateFactors, Stacks
from adalink_jax.methods.compose import Parts
from adalink_jax.methods.reft import Positions
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs import description, options, scoring, training
from adalink_jax.training import optimizers
from adalink_jax.values import Length, Rate, Seed, Size

# As they are written in a gin file.
VALUES = ("'a'", "''", "1.5", "-1", "0", "None", "True", "[]", "{}", "1e999", "1000000000000")
# Of these, what a setting of each kind takes. A "?" after a kind adds None.
TAKES = {
    "size": (),
    "count": ("1000000000000",),
    "seed": ("0",),
    "number from 0": ("0", "1000000000000"),
    "amount": ("0", "1.5", "1000000000000"),
    "number": ("-1", "0", "1.5", "1000000000000"),
    "rate": ("0",),
    "share": (),
    "positive": ("1.5", "1000000000000"),
    "flag": ("True",),
    "name": (),
    "text": ("'a'", "''"),
    "path": ("'a'",),
    "list of names": (),
    "list of texts": ("'a'",),
    "character": ("'a'",),
    "numbers": (),
    "lengths": (),
    "object": (),
}
MACROS = {
    **dict.fromkeys(("RANK", "ROUTES", "PROMPT_LENGTH", "PREFIX_LENGTH"), "size"),
    **dict.fromkeys(("TRAIN_STEPS", "BATCH_SIZE"), "size"),
    **dict.fromkeys(("EVAL_PERIOD", "CHECKPOINT_PERIOD"), "count"),
    **dict.fromkeys(("METHOD", "OPTIMIZER"), "object"),
    **dict.fromkeys(("MODEL_DIR", "EVAL_OUTPUT_DIR"), "path"),
    **dict.fromkeys(("GLUE_DIR", "SUPER_GLUE_DIR", "ROBUSTNESS_DIR"), "path"),
    **dict.fromkeys(("IMAGE_DIR", "TEXT_FILE", "VOCABULARY"), "path"),
    "TEMPLATE_SEED": "seed",
    **dict.fromkeys(("INITIAL_CHECKPOINT_PATH", "INITIAL_ADAPTER_PATH", "ADAPTER_PATH"), "path?"),
    "MODEL": "object?",
    "SEED": "seed",
    "DROPOUT_RATE": "rate",
    **dict.fromkeys(("LEARNING_RATE", "WEIGHT_DECAY"), "amount"),
    "CLIP_NORM": "positive?",
    "EMA_DECAY": "share?",
    "KEEP": "name?",
    "WANDB": "text?",
    "PATIENCE": "count?",
    "WARMUP_STEPS": "size",
    "MIXTURE_OR_TASK_NAME": "text",
    "TASK_FEATURE_LENGTHS": "lengths?",
}
PARAMETERS = {
    "runs.train": {
        **dict.fromkeys(("data", "method", "optimizer", "learning_rate"), "object"),
        **dict.fromkeys(("batches", "evaluation", "periods", "precision"), "object"),
        **{"selection": "object", "images": "object"},
        **dict.fromkeys(("layout", "layers", "loss", "table"), "object"),
        **dict.fromkeys(("initial_checkpoint_path", "initial_adapter_path"), "path?"),
        **{"model_dir": "path", "train_steps": "size", "model": "object?", "seed": "seed"},
        **{"dropout_rate": "rate", "clip_norm": "positive?", "ema_decay": "share?"},
        "wandb": "text?",
    },
    "runs.evaluate": {
        **dict.fromkeys(("data", "evaluation", "precision", "layout", "layers"), "object"),
        **{"table": "object", "images": "object"},
        **dict.fromkeys(("initial_checkpoint_path", "adapter_path"), "path?"),
        **{"output_dir": "path", "in_context": "number from 0", "seed": "seed"},
    },
    "runs.describe": {
        **{"model": "object?", "method": "object?", "initial_checkpoint_path": "path?"},
    },
    "Data": {
        **{"mixture_or_task_name": "text", "task_feature_lengths": "lengths?"},
        **{"cache_dir": "path?", "held_out": "share?"},
    },
    "Table": {
        **dict.fromkeys(("path", "dev"), "path?"),
        **{"inputs": "list of texts?", "labels": "list of names?", "header": "list of texts?"},
        **{
            "target": "text?",
            "delimiter": "character?",
            "kind": "name?",
            "step": "positive?",
            "quotes": "flag?",
        },
    },
    "Images": {
        **{"encoder": "path?", "folder": "path?", "stored": "flag", "dtype": "name"},
        "batch_size": "size",
    },
    "Batches": {
        **{"batch_size": "size", "gradient_accumulation_steps": "size", "packing": "flag"},
        "few_shot": "count?",
        "padding": "name?",
    },
    "Evaluation": {
        **{"mode": "name", "batch_size": "size", "limit": "count?", "beam_size": "size?"},
        "split": "text?",
    },
    "Periods": {
        **dict.fromkeys(("eval_period", "checkpoint_period"), "count"),
        **dict.fromkeys(("log_period", "keep_checkpoints"), "count"),
        "eval_at_start": "flag",
    },
    "Selection": {
        **{"keep": "name?", "metric": "text?", "patience": "count?", "split": "text?"},
        "train_examples": "count?",
    },
    "Precision": {"dtype": "name", "frozen_dtype": "name"},
    "Layout": {
        **{"model_parallelism": "count", "fully_sharded": "flag", "slices": "count"},
        "devices": "count?",
    },
    "Layers": {"scan_layers": "flag?", "remat": "name", "attention": "name"},
    "Loss": {"z_loss": "amount", "label_smoothing": "rate"},
    "adalink.AdaLink": {
        **{"rank": "size", "activation": "name", "routes": "size", "stacks": "list of names"},
        **{"bias": "flag", "dropout_rate": "rate", "by_modality": "flag", "image_rank": "size?"},
    },
    "lora.LoRA": {
        **{"rank": "size", "alpha": "number", "linears": "list of names", "routes": "size"},
        **{"stacks": "list of names", "layers": "numbers?", "dropout_rate": "rate"},
        **{"scaling": "name", "rate_factors": "object?", "gated": "flag"},
        **{"by_modality": "flag", "image_rank": "size?"},
    },
    "prompt_tuning.PromptTuning": {
        **{"length": "size", "reparameterise": "flag", "bottleneck": "size", "routes": "size"},
        **{"dropout_rate": "rate", "initialisation": "name", "text": "text"},
        **{"generator": "name", "seed": "seed"},
    },
    "full.Full": {},
    "optimizers.factors": {
        **{"factors": "name", "base_learning_rate": "amount", "warmup_steps": "size"},
        "decay_steps": "size?",
    },
    "optimizers.adafactor": {
        **{"multiply_by_parameter_scale": "flag", "factored": "flag", "decay_rate": "rate"},
        **{"clipping_threshold": "amount?", "weight_decay_rate": "amount?"},
        "min_dim_size_to_factor": "size",
    },
    "optimizers.adamw": {
        **{"weight_decay": "amount", "b1": "rate", "b2": "rate", "eps": "positive"},
    },
    "optimizers.adam": {"b1": "rate", "b2": "rate", "eps": "positive"},
    "optimizers.sgd": {"momentum": "rate", "nesterov": "flag", "weight_decay": "amount"},
    "optimizers.lion": {"weight_decay": "amount", "b1": "rate", "b2": "rate"},
    "t5.T5Config": {
        **dict.fromkeys(("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"), "size"),
        **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), "size"),
        **dict.fromkeys(("logits_via_embedding", "separate_encoder_embedding"), "flag"),
        **dict.fromkeys(("relpos_bias_per_layer", "float32_attention_logits"), "flag"),
        **{"dtype": "name", "mlp_activations": "list of names", "dropout_rate": "rate"},
        **{"scan_layers": "flag?", "remat": "name", "attention": "name"},
        **{"image_width": "size?", "image_positions": "name"},
    },
}
# What each command needs to be whole; more files go between.
FILES = {"train": "runs/finetune.gin", "evaluate": "runs/eval.gin", "describe": "runs/describe.gin"}
TASK = ("MIXTURE_OR_TASK_NAME=mini_cola", "TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}")
GIVEN = {
    "train": (*TASK, "MODEL_DIR=run", "INITIAL_CHECKPOINT_PATH=mini", "TRAIN_STEPS=1"),
    "evaluate": (*TASK, "EVAL_OUTPUT_DIR=run", "ADAPTER_PATH=None"),
    "describe": (),
}
# The fields of other methods, which a new method need not add here: by their annotations.
KINDS = dict(
    (
        *((Size, "size"), (Length, "size"), (Rate, "rate"), (float, "number"), (bool, "flag")),
        *((Stacks, "list of names"), (Layers, "numbers?"), (RateFactors, "object?")),
        *((Parts, "object"), (Positions, "seed"), (Seed, "seed")),
    )
)
OTHERS = {
    f"{name}.{kind.__name__}.{field.name}": KINDS.get(
        field.type, "list of names" if typing.get_origin(field.type) is tuple else "name"
    )
    for name, kind in METHODS.items()
    if f"{name}.{kind.__name__}" not in PARAMETERS
    for field in dataclasses.fields(kind)
}
SETTINGS = [
    *((name, kind) for name, kind in MACROS.items()),
    *((f"{of}.{name}", kind) for of, names in PARAMETERS.items() for name, kind in names.items()),
    *(pytest.param(name, kind, marks=pytest.mark.slow) for name, kind in OTHERS.items()),
]


class Reached(Exception):
    """All settings are accepted, and the work would begin."""


def begins(*arguments, **named):
    raise Reached


def command_of(setting: str) -> tuple[str, list[str]]:
    """A command that reads a setting, and its gin files."""
    entry = setting.split(".")[1] if setting.startswith("runs.") else "train"
    entry = "evaluate" if setting in ("ADAPTER_PATH", "EVAL_OUTPUT_DIR") else entry
    method = setting.split(".")[0] if setting.split(".")[0] in METHODS else "adalink"
    method = {"PROMPT_LENGTH": "prompt_tuning", "PREFIX_LENGTH": "prefix_tuning"}.get(
        setting, method
    )
    optimizer = {"WEIGHT_DECAY": "adamw"}.get(setting, setting.split(".")[-2:][0])
    others = [f"optimizers/{optimizer}.gin"] * (optimizer in ("adamw", "adam", "sgd", "lion"))
    others += ["schedules/constant.gin"] * (setting == "WARMUP_STEPS")
    return entry, [f"methods/{method}.gin", "models/mini.gin", FILES[entry], *others]


parse = reader._statements


@functools.cache
def parsed(text: str, where: str) -> list:
    """The statements of a gin text; those of shipped files are parsed once for all tests."""
    return list(parse(text, where))


@pytest.fixture
def says(tmp_path, monkeypatch, capsys):
    """Runs a command up to its work; returns its one line of error, or None where it begins."""
    monkeypatch.chdir(tmp_path)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for module in (training, scoring):
        monkeypatch.setattr(module, "prepared_base", begins)
    monkeypatch.setattr(description, "description", begins)
    monkeypatch.setattr(reader, "_statements", lambda source, where: parsed("".join(source), where))

    def run(setting: str, value: str) -> str | None:
        entry, files = command_of(setting)
        argv = [f"--gin_file={name}" for name in files]
        argv += [f"--gin.{binding}" for binding in (*GIVEN[entry], f"{setting}={value}")]
        switches = {"json": "print JSON"} if entry == "describe" else {}
        try:
            code = gin_files.main(f"adalink_jax.runs.{entry}", argv, switches=switches)
        except Reached:
            code = 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line[:6] == "error:"]
        assert (code, len(lines)) in ((0, 0), (2, 1)), (setting, value, code, lines)
        return lines[0] if lines else None

    return run


@pytest.mark.parametrize(("setting", "kind"), SETTINGS, ids=str)
def test_a_wrong_value_is_refused_by_name_and_a_right_one_is_not(says, setting, kind):
    right = {*TAKES[kind.rstrip("?")], *(["None"] if kind.endswith("?") else [])}
    for value in VALUES:
        line = says(setting, value)
        if value in right:
            assert line is None or "it takes" not in line, line
        else:
            assert line and setting.rpartition(".")[2] in line, f"{setting}={value}: {line}"


def test_every_setting_is_in_the_list():
    shipped = {macro.name for macro in macros() if not macro.file.startswith("t5x/")}
    assert shipped == set(MACROS)
    targets = (
        *(runs.train, runs.evaluate, runs.describe, optimizers.factors, optimizers.adafactor),
        *(optimizers.adamw, optimizers.adam, optimizers.sgd, optimizers.lion),
        *(T5Config, *options.GROUPS),
        *(METHODS[name] for name in ("adalink", "lora", "prompt_tuning", "full")),
    )
    names = [name.rpartition(".")[2] for name in PARAMETERS]
    assert sorted(names) == sorted(target.__name__ for target in targets)
    for target in targets:
        listed = next(of for name, of in PARAMETERS.items() if name.endswith(target.__name__))
        taken = set(inspect.signature(target).parameters) - {"learning_rate"} - {"configuration"}
        assert taken - {"json"} == set(listed) - {"learning_rate"}, target.__name__


WHOLE = """include 'runs/finetune.gin'
include 'methods/adalink.gin'
MODEL = None
MODEL_DIR = 'run'
INITIAL_CHECKPOINT_PATH = 'mini'
MIXTURE_OR_TASK_NAME = 'mini_cola'
TASK_FEATURE_LENGTHS = {'inputs': 48, 'targets': 16}
TRAIN_STEPS = 1
"""


def resolved(line: str, *bindings: str) -> gin_files.Configuration:
    """What train would get of two gin files, of which the second, my.gin, has this third line."""
    pathlib.Path("whole.gin").write_text(WHOLE)
    pathlib.Path("my.gin").write_text(f"include 'whole.gin'\n\n{line}\n", encoding="utf-8-sig")
    return gin_files.read(
        "adalink_jax.runs.train", ["my.gin"], bindings, supplied=("configuration",)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SEED = 1.5", "my.gin:3: SEED is 1.5; it takes a whole number from 0 to 4,294,967,295"),
        (
            "RANK = '8'",
            "my.gin:3: RANK is '8'; it takes a whole number from 1 to 268,435,456; leave",
        ),
        (
            "options.Layers.remat = 'ful'",
            "options.Layers.remat is 'ful'; it takes one of none, mini",
        ),
        ("options.Layers.remat = 'ful'", "; did you mean 'full'?"),
        (
            "OPTIMIZER = 'adamw'",
            "it takes a file, --gin_file=optimizers/adamw.gin after the method's, or a refer",
        ),
        (
            "OPTIMIZER = @optimizers.adafactor()",
            "OPTIMIZER is @optimizers.adafactor(); it takes a f",
        ),
        ("OPTIMIZER = @optimizers.factors", "OPTIMIZER is @optimizers.factors; it takes a file, "),
        ("METHOD = @adalink.AdaLink", "METHOD is @adalink.AdaLink; it takes a method, such as @ad"),
        ("MODEL = @options.Loss()", "MODEL is @options.Loss(); it takes an architecture, such as"),
        ("runs.train.learning_rate = 0.1", "runs.train.learning_rate is 0.1; it takes a schedule"),
        (
            "TASK_FEATURE_LENGTHS = {'inputs': %RANK, 'targets': 'x'}",
            "'targets': 'x'}; it takes len",
        ),
        (
            "MODEL_DIR = 'gs://bucket/run'",
            "MODEL_DIR is 'gs://bucket/run'; it takes a path on this m",
        ),
        ("MODEL_DIR = '~nobody-is-here/x'", "MODEL_DIR is '~nobody-is-here/x'; it takes a path on"),
        (
            f"MODEL_DIR = '{'x' * 256}'",
            "; it takes a path on this machine, no URL, with names of at",
        ),
        ("MODEL_DIR = 'a\\0b'", "MODEL_DIR is 'a\\x00b'; it takes a path on this machine"),
        ("RANK = 1e999", "my.gin:3: RANK is inf; a number must be finite"),
        ("RANK = [1, {'a': -1e999}]", "my.gin:3: RANK is -inf; a number must be finite"),
        ("RANK = b'x'", "my.gin:3: RANK is b'x'; it takes no bytes"),
        ("RANK = '\\ud800'", "my.gin:3: RANK is '\\ud800', which holds half of a character"),
        (f"RANK = {'[' * 500}{']' * 500}", ": brackets in more than 32 brackets"),
        (f"RANK = {'[' * 40}{']' * 40}", "my.gin:3: RANK has brackets in more than 32 brackets"),
        (f"RANK = {'9' * 5000}", "my.gin:"),
        (f"RANK = {'9' * 400}", f"my.gin:3: RANK is {'9' * 80}…; it takes a whole number"),
        (f"LEARNING_RATE = {'9' * 400}", "…; it takes a number ≥ 0"),
        (f"include '{'x' * 300}'", "my.gin:3: cannot read the gin file 'xxx"),
        ("RANK = {[1]: 2}", "my.gin: unhashable type: 'list'"),
        ("import broken_tasks", "my.gin:3: importing 'broken_tasks' fails: ZeroDivisionError: "),
        ("MIXTURE_OR_TASK_MODULE = 'my_tasks'", "in a gin file instead: import my_tasks"),
    ],
)
def test_what_a_gin_file_says_wrong_is_one_line(tmp_path, monkeypatch, line, message):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")
    with pytest.raises(UserError) as caught:
        resolved(line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_tilde_in_a_path_is_the_home_wherever_it_is_set(monkeypatch, tmp_path):
    """In macros of files and flags, in parameters, and in what is for the environment.

    The file begins with a byte order mark, which is read over.
    """
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    found = resolved(
        "MODEL_DIR = '~/run'\nGLUE_DIR = '~'\nMIXTURE_OR_TASK_NAME = '~/name'",
        "INITIAL_CHECKPOINT_PATH='~/base'",
        "Data.cache_dir='~/cache'",
    )
    assert found.values["model_dir"] == "/home/me/run"
    assert found.values["initial_checkpoint_path"] == "/home/me/base"
    assert found.values["data"]["cache_dir"] == "/home/me/cache"
    assert found.values["data"]["mixture_or_task_name"] == "~/name"
    assert found.environment == {"GLUE_DIR": "/home/me"}
    assert gin_files.build(found)["model_dir"] == "/home/me/run"  # Of the text.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: METHODS["adalink"](rank=1.5), "AdaLink.rank is 1.5; it takes a whole number from"),
        (
            lambda: options.Batches(packing="yes"),
            "Batches.packing is 'yes'; it takes True or False",
        ),
        (
            lambda: optimizers.factors(warmup_steps=True),
            "warmup_steps is True; it takes a whole nu",
        ),
        (lambda: T5Config(vocab_size=8, num_encoder_layers=10**6), "num_encoder_layers is 1000000"),
        (lambda: al.finetune("mini", "adalink", []), "method is 'adalink'; it takes a method"),
        (
            lambda: al.finetune("mini", METHODS["full"](), [], seed=-1),
            "seed is -1; it takes a whol",
        ),
        (
            lambda: al.predict("mini", None, [], max_length=0),
            "max_length is 0; it takes a whole nu",
        ),
    ],
)
def test_python_says_the_same(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_one_name_and_a_list_are_tuples():
    method = METHODS["lora"](rank=1, stacks="decoder", linears=["mlp/*"], layers=[0])
    assert (method.stacks, method.linears, method.layers) == (("decoder",), ("mlp/*",), (0,))


def test_numpys_numbers_and_texts_are_pythons():
    method = METHODS["adalink"](rank=np.int64(2), dropout_rate=np.float32(0.5))
    assert method == METHODS["adalink"](rank=2, dropout_rate=0.5)
    assert (type(method.rank), type(method.dropout_rate)) == (int, float)
    with pytest.raises(UserError, match=r"rank is 2\.0; it takes a whole number"):
        METHODS["adalink"](rank=np.float64(2))
