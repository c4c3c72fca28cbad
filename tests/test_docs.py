"""The commands and the Python of the README and of docs/, run as they stand there.

Python runs in order, a page in one namespace. Commands are parsed and checked: flags, gin files and
their bindings, scripts that must exist; `describe` runs. Trainings in Python take two steps.
A block after an HTML comment ``<!-- not run: WHY -->`` is left out, and `NOT_RUN` counts those.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.adapters import load
from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.config import gin_files
from adalink_jax.config.flags import parse
from adalink_jax.methods import METHODS
from adalink_jax.models import decoding
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.runs import options
from tests.tiers import mostly_slow

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")))
]
NOT_RUN = {
    **{"docs/howto/adapters.md": 3, "docs/howto/images.md": 3, "docs/howto/serving.md": 2},
    **{"docs/howto/t5x.md": 1, "docs/tutorials/method.md": 1},
}
# Of other programs; their own documentation is the test.
FOREIGN = (
    *("cd", "echo", "export", "for", "done", "git", "pip", "curl", "mkdir", "source", "unzip"),
    *("docker", "hf", "kubectl"),
    *("mkdocs", "pyright", "pre-commit"),
)
# Its first block is the file of a method, which the second imports.
METHOD_PAGE = "docs/tutorials/method.md"
CONFIG = T5Config(
    vocab_size=40,
    emb_dim=12,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
    mlp_activations=("gelu", "linear"),
)


def blocks(page: str, language: str) -> list[str]:
    """A page's blocks in a language, but those that are marked."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [code for mark, kind, code in BLOCK.findall(text) if kind == language and not mark]


def with_blocks(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def commands(code: str) -> list[list[str]]:
    """The simple commands of a block of shell, each as its words, without variables in front."""
    code = re.sub(r"\\\n\s*", " ", code)
    result = []
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        for word in ("|", "do", "then"):
            while word in words:
                words[words.index(word)] = ";"
        command: list[str] = []
        for word in [*words, ";"]:
            if word == ";" or word.endswith(";"):
                command += [word[:-1]] if word != ";" else []
                if command:
                    result.append(command)
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):
                command.append(word)
    return result


def test_commands_are_taken_apart():
    code = 'A=1 B="2 3" x y \\\n    --z=1  # w\nfor i in 1 2; do\n    echo a | x b\ndone | c\n'
    assert commands(code) == [
        ["x", "y", "--z=1"], ["for", "i", "in", "1", "2"], ["echo", "a"], ["x", "b"], ["done"],
        ["c"],
    ]  # fmt: skip


def test_few_blocks_are_not_run_and_each_says_why():
    marked = {}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found = BLOCK.findall(text)
        # Every fence is one that is understood.
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), page
        count = sum(bool(mark) and kind in ("bash", "python") for mark, kind, _ in found)
        marked |= {page: count} if count else {}
    assert marked == NOT_RUN


def check_training(flags: list[str], entry: str = "adalink_jax.runs.train", first=()) -> None:
    """Resolves a training's gin files and bindings, as it would before anything is loaded."""
    # A loop's variable stands for a seed or a method.
    flags = [re.sub(r"\$\w+", "1", flag.replace("_$method", "_lora")) for flag in flags]
    assert all("=" in flag for flag in flags)  # As all pages write them.
    given = parse(flags, {})
    found = gin_files.read(
        entry, [*first, *given.gin_files], given.bindings, supplied=("configuration", "json")
    )
    if "model_dir" in found.values:  # Commands further down may read what the run leaves.
        folder = pathlib.Path(found.values["model_dir"])
        if not folder.is_absolute():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.gin").write_text(found.text, encoding="utf-8")


def check_command(name: str, arguments: list[str], monkeypatch) -> None:
    """Lets a command understand its arguments; it does not run, nor do the trainings of a sweep."""
    command = cli.COMMANDS[name]
    if isinstance(command, cli.GinCommand):
        first = [command.run_file] if command.reads_run_file else []
        flags = [word for word in arguments if word.removeprefix("--") not in command.switches]
        return check_training(flags, command.entry, first)
    module, understood = importlib.import_module(command.module), []
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", understood.append)
        assert cli.main([name, *arguments]) == 0, f"adalink {name} {shlex.join(arguments)}"
    (namespace,) = understood
    for flags in getattr(module, "commands", lambda _: [])(namespace):
        check_training(flags)


def check_t5x(arguments: list[str]) -> None:
    """A command of T5X's launcher: our gin files are there, and what names their folder works."""
    assert arguments[0] in ("t5x.train", "t5x.eval")
    for ours in re.findall(r"--gin_file=(t5x/(?:methods|runs|tasks)/\S+)", " ".join(arguments)):
        assert (ROOT / "gin" / ours).is_file(), ours
    for code in re.findall(r"\$\(python -c '(.*?)'\)", " ".join(arguments)):
        exec(code, {})


def check(command: list[str], monkeypatch) -> None:
    program, *rest = command
    if program.removeprefix(".venv/bin/") in FOREIGN:
        return
    if program == "adalink":
        if rest[0] in ("--help", "describe"):
            assert cli.main(rest) == 0
        else:
            check_command(rest[0], rest[1:], monkeypatch)
    elif program == "scripts/launch/local.sh":
        assert (ROOT / program).is_file()
        check(rest[1:], monkeypatch)
    elif program == "sbatch":
        assert (ROOT / rest[0]).is_file()
        check_training(rest[1:])
    elif rest and rest[0] == "scripts/launch/tpu_pod.sh":
        check(rest[3:], monkeypatch)
    elif program == "python" and rest[0] == "-m":
        check_t5x(rest[1:])
    else:
        assert program in ("bash", "python"), f"what does this do: {shlex.join(command)}"
        assert (ROOT / rest[0]).is_file(), rest[0]


@pytest.mark.parametrize("page", with_blocks("bash"))
def test_commands_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "gin"):
        if named := re.match(r"# ([\w.]+\.gin)\n", code):
            (tmp_path / named[1]).write_text(re.sub(r"import my_\w+\n", "", code))
    for code in blocks(page, "bash"):
        for command in commands(code):
            check(command, monkeypatch)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, mini_base) -> pathlib.Path:
    """A folder with a tiny base where pages name checkpoints, and the small world's."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(mini_base, folder / "checkpoints/flan_t5_base")
    shutil.copytree(ROOT / "adalink_jax/bases", folder / "adalink_jax/bases")
    return folder


@pytest.mark.parametrize(
    "page",
    mostly_slow([p for p in with_blocks("python") if p != "docs/howto/adapters.md"], ["README.md"]),
)
def test_python_runs(page, stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    # As a module, for dataclasses look for the one that defines them.
    name = "adalink_jax.methods.gain" if page == METHOD_PAGE else "a_page"
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    for code in blocks(page, "python"):
        code = re.sub(r"\btrain_steps=\d+", "train_steps=2", code)
        exec(compile(code, page, "exec"), module.__dict__)


@pytest.mark.slow
def test_the_tutorial_of_a_table_runs_as_it_stands(tmp_path, monkeypatch):
    page = "docs/tutorials/own_data.md"
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), {})
    command = f'adalink() {{ "{sys.executable}" -m adalink_jax "$@"; }}\nset -e -o pipefail\n'
    done = subprocess.run(
        ["bash", "-c", command + "\n".join(blocks(page, "bash"))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said, answer = blocks(page, "text")[0], blocks(page, "text")[2]
    assert done.stdout.startswith(said)
    assert answer.partition('"scores"')[0] in done.stdout
    for results in ("runs/reviews/results.json", "runs/test/results.json"):
        content = (tmp_path / results).read_text(encoding="utf-8")
        assert json.loads(content)["tasks"]["reviews"]["score"] > 90
    assert (tmp_path / "exported/reviews/config.json").is_file()


def test_the_tutorials_gin_file_configures_its_method(tmp_path, monkeypatch):
    page = METHOD_PAGE
    (text,) = blocks(page, "gin")
    (tmp_path / "gain.gin").write_text(text, encoding="utf-8")
    module = type(sys)("adalink_jax.methods.gain")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("adalink_jax.methods.gain", module, raising=False)
    exec(compile(blocks(page, "python")[0], page, "exec"), module.__dict__)
    monkeypatch.chdir(tmp_path)
    given = ["MODEL_DIR=a", "MIXTURE_OR_TASK_NAME=a", "TRAIN_STEPS=1", "INITIAL_CHECKPOINT_PATH=a"]
    given += ["TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}"]
    files = ["runs/finetune.gin", "models/mini.gin", "gain.gin"]
    check_training([*(f"--gin_file={f}" for f in files), *(f"--gin.{each}" for each in given)])


def block(start: str) -> str:
    """The one block of Python of the page about adapters that holds a string."""
    text = (ROOT / "docs/howto/adapters.md").read_text(encoding="utf-8")
    found = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if start in code]
    assert len(found) == 1
    return found[0]


def test_the_reference_has_every_setting(monkeypatch):
    """Each with a type, a default and a meaning, and as many as the classes themselves have."""
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    monkeypatch.setenv("COLUMNS", "92")  # As it sets it itself.
    monkeypatch.syspath_prepend(ROOT / "docs")
    generate = importlib.import_module("generate")
    rows, title = {}, ""
    for line in generate.settings_page().splitlines():
        title = line.lstrip("# ") if line.startswith("#") else title
        if line.startswith("| `"):
            rows[title, re.match(r"\| `(\w+)`", line)[1]] = re.split(r" (?<!\\)\| ?", line)[1:5]
    assert not [name for name, cells in rows.items() if not all(cells[:3])]
    assert {name for title, name in rows if title == "Macros"} == {
        macro.name for macro in generate.macros() if not macro.file.startswith("t5x/")
    }
    for kind in (*options.GROUPS, *(k for k in METHODS.values() if dataclasses.fields(k))):
        titles = {title for title, _ in rows if title.split(".")[-1] == kind.__name__}
        listed = {name for title, name in rows if title in titles}
        assert listed == {field.name for field in dataclasses.fields(kind)}, kind
    assert rows["Macros", "KEEP"][:2] == ["one of best, lowest or None", "`None`"]
    assert rows["optimizers.adamw", "weight_decay"] == [
        "a number ≥ 0", "`0.01`",
        "the share that a step takes off, times the learning rate. The default is PyTorch's.",
        "`optimizers/adamw.gin`",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in pages.items()}
    assert "CHECKPOINT_PERIOD" in texts["reference/gin/index.html"]
    assert "adalink multitask" in texts["reference/command_line/index.html"]
    # Every page opens without a network.
    outside = re.compile(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(http[^\" >]+)")
    assert not [name for name, text in texts.items() if outside.search(text)]


@pytest.fixture(scope="module")
def base(write_base):
    return write_base(CONFIG)


@pytest.fixture(scope="module")
def inputs_embeds():
    code, names = block("def inputs_embeds"), {}
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported == {"json", "pathlib", "numpy", "safetensors"}
    exec(code, names)
    return names["inputs_embeds"]


@pytest.mark.parametrize("activation", mostly_slow(["identity", "relu", "gelu"], ["gelu"]))
def test_numpy_computes_the_encoders_embedded_input(base, write_adapter, inputs_embeds, activation):
    method = METHODS["adalink"](rank=3, activation=activation, routes=4)
    folder = write_adapter(method, base, scale=0.4)
    adaptation = load.load_adaptation(folder, base)
    seen = []

    class Spy(METHODS["adalink"]):
        def inputs(self, x, ctx):
            seen.append(super().inputs(x, ctx))
            return seen[-1]

    tokens, _ = fixed_inputs(CONFIG.vocab_size)
    routes = np.random.default_rng(0).integers(0, 4, tokens.shape).astype(np.int32)
    routes[1] = 2  # Of a padded row, so that the network leaves padding's route as it is.
    model = Transformer(CONFIG, Spy(**adaptation.adapter.settings), route_slots=4)
    model.apply(
        {"params": adaptation.params},
        tokens,
        enable_dropout=False,
        encoder_routes=routes,
        method="encode",
    )
    table = adaptation.base["token_embedder"]["embedding"]
    found = inputs_embeds(folder, table, tokens, routes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, seen[0][0], rtol=0, atol=1e-5)
    assert np.abs(found - table[tokens]).max() > 0.1


@pytest.mark.reference
def test_transformers_runs_it_from_inputs_embeds(base, write_adapter, inputs_embeds, torch_t5):
    import torch

    folder = write_adapter(METHODS["adalink"](rank=3), base, scale=0.4)
    adaptation = load.load_adaptation(folder, base)
    tokens, targets = fixed_inputs(CONFIG.vocab_size)
    names = {
        "model": torch_t5(CONFIG, adaptation.base),
        "inputs_embeds": lambda _, *rest: inputs_embeds(folder, *rest),
        "tokens": tokens,
        "mask": torch.tensor(tokens > 0).long(),
        "targets": torch.tensor(targets).long(),
        "torch": torch,
    }
    code = block("model(inputs_embeds=")
    exec(code.replace("model(inputs", "result = model(inputs"), names)
    found = names["result"].logits.detach().numpy()
    np.testing.assert_allclose(found, adaptation.logits(0), rtol=0, atol=1e-4)


def test_a_program_runs_with_jax_alone(base, write_adapter, tmp_path, monkeypatch):
    adapter = write_adapter(METHODS["adalink"](rank=3), base)
    programs = tmp_path / "programs"
    flags = {"adapter": adapter, "base": base, "to": programs, "format": "stablehlo"}
    assert cli.main(["export", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    code, names = block("score.stablehlo"), {}
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) == {
        "jax", "numpy", "safetensors",
    }  # fmt: skip
    exec(code, names)
    adaptation = load.load_adaptation(adapter, base)
    expected = decoding.score_options(
        Transformer(CONFIG, adaptation.method),
        adaptation.params,
        names["inputs"],
        names["options"],
        names["routes"],
    )
    np.testing.assert_allclose(names["log_likelihoods"], expected, atol=1e-4)
    assert isinstance(names["log_likelihoods"], jax.Array)
