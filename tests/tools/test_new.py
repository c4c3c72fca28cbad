"""`adalink new`: the files it writes can be trained with, and say what they set."""

import re

import pytest

from adalink_jax import cli
from adalink_jax.config import gin_files
from adalink_jax.methods import METHODS
from tests.tiers import mostly_slow

tasks = pytest.importorskip("tasks", reason="SeqIO is not installed")
MODELS = sorted(path.stem for path in (gin_files.gin_folder() / "models").glob("*.gin"))
TASKS = (*tasks.GLUE_TASKS, *tasks.MINI_GLUE_TASKS, "glue_proportional", "mini_instructions")


def write(path, **flags):
    return cli.main(["new", str(path), *(f"--{name}={value}" for name, value in flags.items())])


def resolved(path):
    bindings = ["MODEL_DIR=run"]
    return gin_files.read(
        "adalink_jax.runs.train", [str(path)], bindings, supplied=["configuration"]
    )


@pytest.mark.parametrize("method", mostly_slow(METHODS, ["adalink"]))
def test_every_method_on_every_task_resolves(tmp_path, method):
    for number, task in enumerate(TASKS):
        model = MODELS[number % len(MODELS)]
        path = tmp_path / f"{task}.gin"
        assert write(path, method=method, model=model, task=task) == 0
        found = resolved(path)
        built = gin_files.build(found)
        assert type(built["method"]) is METHODS[method]
        assert built["model"].emb_dim == gin_files.shipped(model, method)[0].emb_dim
        assert built["data"].mixture_or_task_name == task
        # Each macro of the file is preceded by what it means.
        text = path.read_text()
        assert text.count("\n# ") >= len(re.findall(r"^[A-Z_]+ = ", text, re.MULTILINE)) > 9


def test_values_are_those_of_the_experiments(tmp_path, monkeypatch):
    monkeypatch.setenv("VOCABULARY", "my.model")
    assert write(tmp_path / "a.gin", method="adalink", model="flan_t5_base", task="glue_rte") == 0
    text = (tmp_path / "a.gin").read_text()
    base = "gs://t5-data/pretrained_models/t5x/flan_t5_base/checkpoint_1184000"
    assert f"INITIAL_CHECKPOINT_PATH = '{base}'\n" in text and "\nRANK = 4\n" in text
    assert "TRAIN_STEPS = 5000\n" in text and "# VOCABULARY = 'my.model'\n" in text
    assert write(tmp_path / "b.gin", method="adalink", model="mini", task="mini_cola") == 0
    text = (tmp_path / "b.gin").read_text()
    assert (
        "LEARNING_RATE = 0.01\n" in text
        and "INITIAL_CHECKPOINT_PATH = 'mini'\n" in text
        and "GLUE_DIR" not in text
    )
    assert write(tmp_path / "c.gin", method="full", model="tiny", task="glue_rte") == 0
    assert "INITIAL_CHECKPOINT_PATH = None\n" in (tmp_path / "c.gin").read_text()
    chosen = {"method": "lora", "model": "t5_1_1_xl", "task": "glue_rte", "base": "my/base"}
    assert write(tmp_path / "d.gin", **chosen) == 0
    assert "INITIAL_CHECKPOINT_PATH = 'my/base'\n" in (tmp_path / "d.gin").read_text()
    chosen = {"method": "lora", "model": "t5_1_1_xl", "task": "super_glue_cb"}
    assert write(tmp_path / "e.gin", **chosen) == 0
    text = (tmp_path / "e.gin").read_text()
    assert "\n# SUPER_GLUE_DIR = " in text and "\n# GLUE_DIR" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "adalnk"}, "no file adalnk.gin in gin/methods; did you mean 'adalink'?"),
        ({"model": "flan_base"}, "no file flan_base.gin in gin/models; did you mean"),
        ({"task": "glue_rt"}, "unknown mixture or task 'glue_rt'; did you mean 'glue_rte'?"),
    ],
)
def test_unknown_names_get_the_nearest(tmp_path, capsys, changes, words):
    flags = {"method": "adalink", "model": "mini", "task": "mini_cola"} | changes
    assert write(tmp_path / "run.gin", **flags) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "run.gin").write_text("mine")
    assert write(tmp_path / "run.gin", method="adalink", model="mini", task="mini_cola") == 2
    assert "run.gin exists and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "run.gin").read_text() == "mine"


def test_the_file_trains_as_it_stands(tmp_path, token_cache, monkeypatch):
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    assert write(tmp_path / "run.gin", method="adalink", model="mini", task="mini_cola") == 0
    flags = ["TRAIN_STEPS=1", "BATCH_SIZE=4", "Evaluation.limit=4", f"MODEL_DIR={tmp_path}/run"]
    line = ["train", f"--gin_file={tmp_path}/run.gin", *(f"--gin.{flag}" for flag in flags)]
    assert cli.main(line) == 0
    assert (tmp_path / "run" / "results.json").exists()
