"""config.py on a small module: what reaches the call, and what is known of it."""

import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from adalink_jax import runs
from adalink_jax.config import gin_files, reader
from adalink_jax.errors import UserError

# What reaches the call.


def test_files_and_flags_reach_the_call(toy):
    assert toy.run("--gin.MODEL_DIR='/run'", "--gin.RANK=8", "--gin.toy.train.seed=3") == 0
    received = toy.RECEIVED
    assert (received["model_dir"], received["steps"], received["seed"]) == ("/run", 10, 3)
    assert received["method"] == toy.Method(rank=8)
    assert type(received["method"]) is toy.Method


def test_later_files_win_and_flags_win_over_files(toy):
    toy.write("more.gin", "STEPS = 20\nRANK = 5\n")
    more = "--gin_file=more.gin"
    assert gin_files.main("toy.train", [more, "--gin_file=base.gin", "--gin.MODEL_DIR=x"]) == 0
    assert (toy.RECEIVED["steps"], toy.RECEIVED["method"].rank) == (10, 4)
    assert toy.run("--gin.RANK=6", more, "--gin.MODEL_DIR=x") == 0
    assert (toy.RECEIVED["steps"], toy.RECEIVED["method"].rank) == (20, 6)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'/a b'", "/a b"),
        ('"x"', "x"),
        ("/a/b-c.d", "/a/b-c.d"),
        ("glue_rte", "glue_rte"),
        ("~/x", os.path.expanduser("~/x")),
        ("'~/x'", "~/x"),
        ("None", None),
        ("1e-3", 1e-3),
        ("-2", -2),
        ("{'inputs': 5, 'targets': (1, 2)}", {"inputs": 5, "targets": (1, 2)}),
        ("[%RANK, %STEPS]", [4, 10]),
    ],
)
def test_values_of_flags(toy, text, value):
    assert toy.run(f"--gin.MODEL_DIR={text}") == 0
    assert toy.RECEIVED["model_dir"] == value


def test_flag_with_separate_value_and_switch(toy):
    switches = {"json": "print JSON"}
    assert gin_files.main("toy.describe", ["--gin_file", "base.gin"], switches=switches) == 0
    assert toy.RECEIVED["json"] is False
    arguments = ["--json", "--gin_file", "base.gin"]
    assert gin_files.main("toy.describe", arguments, switches=switches) == 0
    assert toy.RECEIVED["json"] is True
    assert toy.RECEIVED["configuration"].command == tuple(arguments)


def test_end_of_a_name_is_enough_on_the_command_line(toy):
    assert toy.run("--gin.MODEL_DIR=x", "--gin.train.seed=2", "--gin.Method.kind=relu") == 0
    assert (toy.RECEIVED["seed"], toy.RECEIVED["method"].kind) == (2, "relu")


def place(*flags: str) -> int:
    return gin_files.main("toy.place", ["--gin_file=place.gin", *flags])


def test_groups_are_bound_by_their_class_whether_a_file_names_them_or_not(toy, capsys):
    toy.write("place.gin", "toy.place.model_dir = 'x'\n")
    assert place() == 0
    assert toy.RECEIVED["places"] == toy.Places()
    assert place("--gin.Places.devices=3") == 0
    assert toy.RECEIVED["places"] == toy.Places(devices=3)
    known = toy.RECEIVED["configuration"]
    assert known.values["places"] == {"@": "toy.Places", "devices": 3, "parts": 2}
    pathlib.Path("config.gin").write_text(known.text)
    assert gin_files.main("toy.place", ["--gin_file=config.gin"]) == 0
    assert toy.RECEIVED["places"] == toy.Places(devices=3)
    assert place("--gin.Places.devices=0") == 2
    assert "devices is 0; it must be at least 1 (toy.Places.devices" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["num_parts", "parts"])
def test_a_former_parameter_sets_its_field_and_says_so(toy, caplog, name):
    toy.write("place.gin", "toy.place.model_dir = 'x'\n")
    with caplog.at_level("WARNING", "adalink_jax"):
        assert place(f"--gin.toy.place.{name}=3") == 0
    assert toy.RECEIVED["places"] == toy.Places(parts=3)
    assert toy.RECEIVED["configuration"].values["places"]["parts"] == 3
    assert f"command line: toy.place.{name} is Places.parts now" in caplog.text
    assert place("--gin.toy.place.part=3") == 2


@pytest.mark.parametrize(
    ("run", "name", "now"),
    [
        ("train", "batch_size", "Batches.batch_size"),
        ("train", "eval_batch_size", "Evaluation.batch_size"),
        ("evaluate", "batch_size", "Evaluation.batch_size"),
        ("evaluate", "dtype", "Precision.dtype"),
        ("evaluate", "image_batch_size", None),
    ],
)
def test_former_parameters_of_runs_are_no_later_fields(run, name, now):
    function = getattr(runs, run)
    moved = reader._moved(reader.Target(run, function.__module__, run, function), name)
    assert (moved and f"{moved[0].path}.{moved[1]}") == now


def test_functions_can_be_given_called_and_uncalled(toy):
    toy.write("more.gin", "toy.train.optimizer = @toy.optimizer\ntoy.schedule.power = 2\n")
    assert toy.run("--gin_file=more.gin", "--gin.MODEL_DIR=@toy.schedule()") == 0
    assert toy.RECEIVED["model_dir"](3) == 4.5
    assert toy.RECEIVED["optimizer"]("rate") == ("rate", True)


def test_scopes_are_those_of_gin(toy):
    """Against gin itself: inner scopes win, and a macro's value is evaluated in its own scope."""
    toy.write(
        "scopes.gin",
        """
toy.train.model_dir = 'x'
toy.train.steps = [@a/toy.Method(), @a/b/toy.Method(), @toy.Method(), %HELD]
toy.train.method = None
HELD = @toy.Method()
toy.Method.rank = 1
toy.Method.kind = 'base'
a/toy.Method.rank = 2
a/b/toy.Method.rank = 3
HELD/toy.Method.rank = 4
""",
    )
    assert gin_files.main("toy.train", ["--gin_file=scopes.gin"]) == 0
    steps = toy.RECEIVED["steps"]
    assert [method.rank for method in steps] == [2, 3, 1, 4]
    shown = toy.RECEIVED["configuration"].values["steps"]
    assert [method["rank"] for method in shown] == [2, 3, 1, 4]
    assert all(method["kind"] == "base" for method in shown)


def test_the_order_of_a_declaration_and_its_value_does_not_matter(toy):
    toy.write("first.gin", "MODEL_DIR = 'x'\ninclude 'base.gin'\n")
    assert gin_files.main("toy.train", ["--gin_file=first.gin"]) == 0
    assert toy.RECEIVED["model_dir"] == "x"


def test_a_file_included_twice_is_read_once(toy):
    toy.write("one.gin", "include 'base.gin'\nSTEPS = 1\n")
    toy.write("two.gin", "include 'base.gin'\nRANK = 2\n")
    toy.write("both.gin", "include 'one.gin'\ninclude 'two.gin'\nMODEL_DIR = 'x'\n")
    assert gin_files.main("toy.train", ["--gin_file=both.gin"]) == 0
    assert (toy.RECEIVED["steps"], toy.RECEIVED["method"].rank) == (1, 2)


def test_files_are_found_here_then_on_search_paths_then_among_the_shipped(toy, monkeypatch):
    shipped = pathlib.Path("library").resolve()
    monkeypatch.setattr(gin_files, "gin_folder", lambda: shipped)
    finds = "toy.train.model_dir = 'x'\ntoy.train.method = None\ntoy.train.steps = "
    toy.write("library/runs/a.gin", f"{finds}'shipped'\n")
    toy.write("run.gin", "include 'runs/a.gin'\n")
    assert gin_files.main("toy.train", ["--gin_file=runs/a.gin"]) == 0
    assert toy.RECEIVED["steps"] == "shipped"
    toy.write("elsewhere/runs/a.gin", f"{finds}'searched'\n")
    paths = "--gin_search_paths=nowhere,elsewhere"
    assert gin_files.main("toy.train", ["--gin_file=run.gin", paths]) == 0
    assert toy.RECEIVED["steps"] == "searched"
    toy.write("runs/a.gin", f"{finds}'here'\n")
    assert gin_files.main("toy.train", ["--gin_file=run.gin", paths]) == 0
    assert toy.RECEIVED["steps"] == "here"


def test_environment_macros_reach_the_environment_for_the_call(toy, monkeypatch):
    assert toy.run("--gin.MODEL_DIR=x", "--gin.GLUE_DIR=/glue") == 0
    assert toy.RECEIVED["environment"]["GLUE_DIR"] == "/glue"
    assert toy.RECEIVED["configuration"].environment == {"GLUE_DIR": "/glue"}
    assert "GLUE_DIR" not in os.environ
    monkeypatch.setenv("GLUE_DIR", "/of the user")
    assert toy.run("--gin.MODEL_DIR=x") == 0
    assert toy.RECEIVED["environment"]["GLUE_DIR"] == "/of the user"
    assert toy.RECEIVED["configuration"].environment == {}


def test_a_hosts_place_reaches_the_environment_for_the_call(toy, monkeypatch):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    place = ["--coordinator_address=node-0:8476", "--process_count", "2", "--process_index=1"]
    assert toy.run("--gin.MODEL_DIR=x", *place) == 0
    assert [toy.RECEIVED["environment"][name] for name in names] == ["node-0:8476", "2", "1"]
    assert not any(name in os.environ for name in names)


def test_an_unread_import_is_kept_for_what_it_does(toy):
    pathlib.Path("my_tasks.py").write_text("import toy\ntoy.RECEIVED['registered'] = True\n")
    toy.write("more.gin", "import my_tasks\n")
    assert toy.run("--gin_file=more.gin", "--gin.MODEL_DIR=x") == 0
    assert "import my_tasks" in toy.RECEIVED["configuration"].text
    sys.modules.pop("my_tasks")


def test_code_that_gin_decorates_reads_its_own_bindings(toy):
    """SeqIO tasks of T5X's users hold preprocessors decorated with gin.configurable."""
    pathlib.Path("decorated.py").write_text(
        "import gin\n\n@gin.configurable\ndef span(length=1):\n    return length\n"
    )
    toy.write("more.gin", "import decorated\ndecorated.span.length = 7\n")
    assert toy.run("--gin_file=more.gin", "--gin.MODEL_DIR=x") == 0
    assert sys.modules["decorated"].span() == 7
    assert "decorated.span.length = 7" in toy.RECEIVED["configuration"].text
    sys.modules.pop("decorated")


def test_parameters_of_any_name_where_the_function_takes_them(toy):
    toy.write("more.gin", "toy.train.lengths = @toy.anything()\ntoy.anything.colour = 'red'\n")
    assert toy.run("--gin_file=more.gin", "--gin.MODEL_DIR=x") == 0
    assert toy.RECEIVED["lengths"] == {"colour": "red"}
    shown = toy.RECEIVED["configuration"].values["lengths"]
    assert shown == {"@": "toy.anything", "colour": "red"}


# What is known of the configuration.


@pytest.fixture
def configuration(toy):
    """Returns the configuration that a call is given."""

    def run(*arguments: str) -> gin_files.Configuration:
        assert toy.run("--gin.MODEL_DIR=x", *arguments) == 0
        return toy.RECEIVED["configuration"]

    return run


def test_values_are_expanded_with_defaults_in_order(toy, configuration):
    toy.write(
        "more.gin",
        "toy.train.optimizer = @toy.optimizer()\n"
        "toy.optimizer.learning_rate = @toy.schedule\n"
        "toy.schedule.rate = %RATE\nRATE = 0.1\n",
    )
    values = configuration("--gin_file=more.gin").values
    assert values == {
        "model_dir": "x",
        "method": {"@": "toy.Method", "rank": 4, "kind": "identity", "shape": [1, 2]},
        "steps": 10,
        "optimizer": {
            "@": "toy.optimizer",
            "learning_rate": {"@partial": "toy.schedule", "rate": 0.1},
            "scale": True,
        },
        "seed": 0,
        "lengths": None,
    }
    names = ["model_dir", "method", "steps", "optimizer", "seed", "lengths"]
    assert list(values) == names  # The order of the signature.
    assert json.loads(json.dumps(values)) == values


def test_origins_name_file_and_line_or_the_command_line(toy, configuration):
    toy.write("more.gin", "STEPS = 20\ntoy.Method:\n    kind = 'relu'\n")
    origins = configuration("--gin_file=more.gin").origins
    assert origins["MODEL_DIR"] == "command line"
    assert origins["RANK"] == "base.gin:8"
    assert origins["STEPS"] == "more.gin:3"
    assert origins["toy.Method.kind"] == "more.gin:5"
    assert origins["toy.train.steps"] == "%STEPS, more.gin:3"
    assert origins["toy.train.model_dir"] == "%MODEL_DIR, command line"


def test_text_holds_what_is_read_and_nothing_else(toy, configuration):
    text = configuration().text
    assert "toy.Method.rank = %RANK  # base.gin:11\n" in text
    assert "RANK = 4  # base.gin:8\n" in text
    assert "describe" not in text


def test_text_alone_gives_the_same_again(toy, configuration):
    toy.write(
        "more.gin",
        "toy.train.lengths = {'a': (1,), 'b': [], 'c': {}, 'd': 'it\\'s\\n'}\n"
        "toy.train.optimizer = (@s/toy.optimizer(), @toy.schedule)\n"
        "s/toy.optimizer.learning_rate = 1e-4\n",
    )
    first = configuration("--gin_file=more.gin", "--gin.GLUE_DIR=/g")
    received = dict(toy.RECEIVED)
    pathlib.Path("config.gin").write_text(first.text)
    assert gin_files.main("toy.train", ["--gin_file=config.gin"]) == 0
    again = toy.RECEIVED["configuration"]
    assert again.values == first.values
    assert again.environment == first.environment == {"GLUE_DIR": "/g"}
    assert toy.RECEIVED["lengths"] == received["lengths"]
    assert toy.RECEIVED["optimizer"][0] == received["optimizer"][0] == (1e-4, True)

    def statements(text: str) -> list[str]:
        return [line.partition("  # ")[0] for line in text.splitlines()]

    assert statements(again.text) == statements(first.text)


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@hypothesis.given(LITERALS)
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_literal_survives_flag_text_and_gin(toy, value):
    assert toy.run(f"--gin.MODEL_DIR={value!r}") == 0
    assert toy.RECEIVED["model_dir"] == value
    assert type(toy.RECEIVED["model_dir"]) is type(value)


def test_two_modules_of_one_name(toy):
    pathlib.Path("other").mkdir()
    pathlib.Path("other/toy.py").write_text("def theirs(x=1):\n    return 'theirs', x\n")
    toy.write(
        "more.gin",
        "from other import toy as other\n"
        "toy.train.lengths = [@other.theirs(), @toy.anything()]\n"
        "other.theirs.x = 2\n",
    )
    assert toy.run("--gin_file=more.gin", "--gin.MODEL_DIR=x") == 0
    assert toy.RECEIVED["lengths"] == [("theirs", 2), {}]
    for name in ("other", "other.toy"):
        sys.modules.pop(name)


def test_explain_speaks_only_of_what_the_message_names(toy, configuration):
    known = configuration("--gin.toy.train.seed=1")
    assert known.explain("no space left") == "no space left"
    assert known.explain("the seed of doubt") == "the seed of doubt"  # An English word.
    assert known.explain("model_dir is full") == "model_dir is full (MODEL_DIR, command line)"
    assert known.explain("no room in MODEL_DIR").endswith("(MODEL_DIR, command line)")


def test_read_and_build_alone(toy):
    known = gin_files.read(toy.train, ["base.gin"], ["MODEL_DIR=x"], supplied=["configuration"])
    assert gin_files.build(known)["method"] == toy.Method(4)
    with pytest.raises(UserError, match="configuration is required"):
        gin_files.read(toy.train, ["base.gin"], ["MODEL_DIR=x"])


def test_gin_can_read_files_itself_and_loads_no_tensorflow():
    """gin 0.5 uses importlib.util without importing it, which a bare interpreter (-S) shows."""
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from adalink_jax.config import gin_files
try:
    gin_files.gin.parse_config_file("no/such.gin")
except OSError:
    print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
