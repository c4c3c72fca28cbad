"""What is installed: all of our modules and gin files, and the packages that they need."""

import ast
import importlib.metadata
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ("adalink_jax", "tasks", "gin")
FILES = ("setup.py", "pyproject.toml", "LICENSE")


def files_below(folder: str, ending: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob(f"*{ending}")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def arguments(monkeypatch) -> dict:
    """What setup.py gives to setuptools."""
    captured = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: captured.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    return captured


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel that is built from a copy of the sources, without a network."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", str(copy), "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--quiet", "--wheel-dir", str(copy / "wheels")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "wheels").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_brings_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "[console_scripts]\nadalink = adalink_jax.__main__:main\n" in wheel.read(name).decode()


def test_every_package_is_named(arguments):
    folders = {
        pathlib.PurePosixPath(name).parent.as_posix().replace("/", ".")
        for source in ("adalink_jax", "tasks")
        for name in files_below(source, ".py")
    }
    assert set(arguments["packages"]) == folders | {"adalink_jax.gin"}
    for folder in folders:
        assert (ROOT / folder.replace(".", "/") / "__init__.py").is_file()


def test_the_wheel_holds_all_modules_bases_and_gin_files_and_nothing_else(wheel):
    ours = files_below("adalink_jax", ".py") | files_below("tasks", ".py")
    ours |= files_below("adalink_jax/bases", "") | {"adalink_jax/tools/serving/page.html"}
    gin_files = {f"adalink_jax/{name}" for name in files_below("gin", ".gin")}
    assert gin_files
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == ours | gin_files


def test_gin_files_are_found_in_an_installed_copy(wheel, tmp_path):
    """Beside gin-config itself, which the folder of that name must not hide."""
    wheel.extractall(tmp_path / "site")
    code = (
        "import adalink_jax.config.gin_files as c; print(c.gin_folder()); print(c.gin.__file__);"
        "print((c.gin_folder() / 'runs/finetune.gin').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, package, found = done.stdout.split()
    assert pathlib.Path(folder) == tmp_path / "site/adalink_jax/gin"
    assert "site-packages" in package and found == "True"


def test_every_imported_package_is_required(arguments):
    distributions = importlib.metadata.packages_distributions()
    named = {"": arguments["install_requires"], **arguments["extras_require"]}
    names = {key: {canonicalize_name(Requirement(r).name) for r in named[key]} for key in named}
    for name in files_below("adalink_jax", ".py") | files_below("tasks", ".py"):
        # These ask for what may be installed, and say so where it is not.
        optional = {
            "adalink_jax/adapters/probe.py": "reference",
            "adalink_jax/models/kernels.py": "int8",
            "adalink_jax/client.py": "serve",
            "adalink_jax/tools/english_base/prepare.py": "english",
            "adalink_jax/tools/sweep/samplers.py": "search",
            "adalink_jax/runs/dashboard.py": "wandb",
            "adalink_jax/tools/report/elsewhere.py": "tensorboard",
        }
        if name.startswith("adalink_jax/tools/serving/"):
            optional[name] = "serve"
        required = names[""] | names.get(optional.get(name), set())
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in {m.partition(".")[0] for m in modules}:
                if module in sys.stdlib_module_names or module in ("adalink_jax", "tasks"):
                    continue
                if name.startswith("adalink_jax/t5x/") and module == "t5x":
                    continue  # On no registry: it works where the user installed it.
                owners = {canonicalize_name(d) for d in distributions.get(module, [module])}
                assert owners & required, f"{name} imports {module}, of {owners}"


def test_requirements_have_both_bounds(arguments):
    for text in arguments["install_requires"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators == {">=", "<"}, text


def test_bounds_admit_the_gpu_machines(arguments):
    """Python 3.12 with jax 0.11, beside what is tested here: Python 3.11 with jax 0.10."""
    specifiers = {
        Requirement(text).name: Requirement(text).specifier
        for text in arguments["install_requires"]
    }
    assert {"0.10.2", "0.11.2"} == set(specifiers["jax"].filter(["0.9.9", "0.10.2", "0.11.2"]))
    assert "3.12" in SpecifierSet(arguments["python_requires"])
    assert "3.11" in SpecifierSet(arguments["python_requires"])


def test_the_lock_pins_versions_within_the_bounds(arguments):
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in (line for line in lines if not line.startswith("#")):
        # Names and versions alone: no host, address or folder of the machine that made it.
        name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
        assert canonicalize_name(name) not in pins
        pins[canonicalize_name(name)] = version
    for texts in (arguments["install_requires"], *arguments["extras_require"].values()):
        for requirement in map(Requirement, texts):
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_version_is_the_packages_own(arguments, wheel):
    from adalink_jax import __version__

    assert arguments["version"] == __version__
    assert f"adalink_jax-{__version__}.dist-info/METADATA" in wheel.namelist()


_NOTEBOOK = """
import adalink_jax as al

films = [(f"a {word} film {i}", "good") for i, word in enumerate(["fine", "warm", "great"] * 4)]
films += [(f"a {word} film {i}", "bad") for i, word in enumerate(["dull", "cold", "poor"] * 4)]
run = al.finetune(
    "mini",
    al.AdaLink(rank=2),
    films,
    validation=films[:4],
    train_steps=2,
    batch_size=8,
    learning_rate=0.01,
    model_dir="films",
)
assert run.folder.is_dir() and run.history[-1]["step"] == 2
answers = al.predict("mini", run, ["a fine film"])
assert answers[0].prediction in ("good", "bad")
scores = al.evaluate("mini", run, films[:4])
print("finetune works:", run.scores, scores)
"""


@pytest.mark.slow
def test_a_fresh_environment_has_the_command_and_the_calls(wheel, tmp_path):
    """What a new user does: install, doctor, train on the embedded base, and twenty lines."""
    python, work = tmp_path / "venv/bin/python", tmp_path / "work"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "ADALINK_CACHE_DIR": str(tmp_path / "cache")}

    def run(*command) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    locked = ("--constraint", ROOT / "requirements.lock")
    run(python, "-m", "pip", "install", "--quiet", *locked, wheel.filename)
    adalink = python.with_name("adalink")
    assert "adalink_jax" in run(adalink, "doctor")
    run(
        *(adalink, "train", "--gin_file=experiments/mini_adalink.gin", "--gin.MODEL_DIR=run"),
        *("--gin.INITIAL_CHECKPOINT_PATH=mini", "--gin.TRAIN_STEPS=2", "--gin.Evaluation.limit=8"),
    )
    assert (work / "run/adapter/adapter.safetensors").is_file()
    assert "finetune works" in run(python, "-c", _NOTEBOOK)
