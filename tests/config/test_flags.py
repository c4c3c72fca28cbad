"""The flags for a table of one's own, and what they stand for in gin."""

import pytest

from adalink_jax.config import flags, gin_files
from adalink_jax.errors import UserError


@pytest.mark.parametrize(
    ("argv", "bindings"),
    [
        (["--data=a/b c.csv"], ["Table.path='a/b c.csv'", "MIXTURE_OR_TASK_NAME='b_c'"]),
        (["--data", "films/"], ["Table.path='films/'", "MIXTURE_OR_TASK_NAME='films'"]),
        (["--dev=dev.tsv", "--target=label"], ["Table.dev='dev.tsv'", "Table.target='label'"]),
        (["--input=premise, hypothesis"], ["Table.inputs=('premise', 'hypothesis')"]),
        (["--labels=no,yes"], ["Table.labels=('no', 'yes')"]),
    ],
)  # fmt: skip
def test_flags_of_a_table_are_bindings(argv, bindings):
    assert flags.parse(argv, {}).bindings == bindings


def test_they_bind_the_table_of_a_run_and_of_no_other_command():
    files = ["experiments/own_data.gin", "methods/adalink.gin"]
    given = ["--data=reviews.csv", "--gin.MODEL_DIR=run", "--gin.INITIAL_CHECKPOINT_PATH=mini"]
    bindings = flags.parse([*given, "--labels=no,yes"], {}).bindings
    read = gin_files.read("adalink_jax.runs.train", files, bindings, supplied=["configuration"])
    assert read.values["table"]["path"] == "reviews.csv"
    assert read.values["data"]["mixture_or_task_name"] == "reviews"
    made = gin_files.build(read)["table"]
    assert made.labels == ("no", "yes") and made.given
    with pytest.raises(UserError, match="nothing named 'Table' is imported"):
        gin_files.read("adalink_jax.runs.describe", files, bindings, supplied=["configuration"])


def test_a_name_of_the_users_wins_over_that_of_the_file():
    files = ["experiments/own_data.gin", "methods/adalink.gin"]
    given = ["--data=x.csv", "--gin.MODEL_DIR=run", "--gin.INITIAL_CHECKPOINT_PATH=mini"]
    for more in (
        ["--gin.MIXTURE_OR_TASK_NAME=films", *given],
        [*given, "--gin.MIXTURE_OR_TASK_NAME=films"],
    ):
        bindings = flags.parse(more, {}).bindings
        read = gin_files.read("adalink_jax.runs.train", files, bindings, supplied=["configuration"])
        assert read.values["data"]["mixture_or_task_name"] == "films"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("my/film-reviews.csv", "film_reviews"),
        ("reviews/train.csv", "reviews"),
        ("train.csv", "table"),
        ("Train.tsv", "table"),
    ],
)
def test_a_task_is_named_after_its_table_and_never_after_a_split(path, name):
    assert flags.table_name(path) == name


def test_a_setting_without_its_prefix_is_told_the_flag():
    with pytest.raises(UserError, match=r"--train_steps; did you mean '--gin.TRAIN_STEPS=5'\?"):
        flags.parse(["--train_steps=5"], {})
    with pytest.raises(UserError, match=r"--steps; did you mean '--gin.TRAIN_STEPS=…'\?"):
        flags.parse(["--steps"], {})
    with pytest.raises(UserError, match="unknown flag --stepz; --help lists"):
        flags.parse(["--stepz=5"], {})


def test_a_flag_and_its_value_become_one_word():
    words = ["--dev", "a b.csv", "--gin_file=x", "--gin_file", "y", "--gin.A=1", "--data"]
    assert flags.joined(words) == [
        "--dev=a b.csv", "--gin_file=x", "--gin_file=y", "--gin.A=1", "--data"
    ]  # fmt: skip
