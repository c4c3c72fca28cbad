"""`adalink doctor`: what it finds, what it says of what is missing, and its exit code."""

import importlib.metadata

import jax
import pytest

from adalink_jax import cli
from adalink_jax.tools import doctor


@pytest.fixture
def installed(monkeypatch):
    """Packages as they might be: name -> version; required as the given lines say."""

    def install(required, **versions):
        def version(name):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


REQUIRED = ["jax<0.12,>=0.10", "tensorflow<3,>=2.18", 'qwix<0.2,>=0.1.8; extra == "int8"']


def test_a_whole_installation_is_well(installed, capsys, tmp_path, monkeypatch):
    installed(REQUIRED, jax="0.10.2", tensorflow="2.21.0", qwix="0.1.8")
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path / "not" / "yet"))
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    (tmp_path / "glue" / "RTE" / "train.tsv").touch()
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "glue"))
    monkeypatch.setenv("VOCABULARY", "/no/such.model")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "  ok jax 0.10.2\n",
        "  ok 1 of cpu (cpu)\n",
        f"  ok token cache {tmp_path}/not/yet\n",
        f"  ok GLUE_DIR={tmp_path}/glue: RTE\n",
        "  -- VOCABULARY=/no/such.model cannot be read\n     mend it: export VOCABULARY=",
        "adalink train and adalink eval can run\n",
    ):
        assert line in printed
    assert "!!" not in printed and not (tmp_path / "not").exists()


def test_what_is_missing_is_said_with_the_line_that_mends_it(installed, capsys):
    installed(REQUIRED, jax="0.9.9")
    assert cli.main(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert (
        "  !! tensorflow is not installed (<3,>=2.18)\n     mend it: pip install adalink_jax\n"
    ) in printed
    assert "qwix is not installed (<0.2,>=0.1.8): frozen bases in int8" in printed
    assert "     mend it: pip install 'adalink_jax[int8]'\n" in printed
    # Another version than was tested may do.
    assert "  -- jax 0.9.9 is not what was tested (<0.12,>=0.10)\n" in printed
    assert printed.splitlines()[-1] == (
        "adalink train and adalink eval cannot run: mend what is marked !!"
    )


@pytest.fixture
def told():
    """JAX reads its variables when it is imported; so here its settings are changed."""
    before = {}

    def tell(name, value):
        before.setdefault(name, jax.config.values[name])
        jax.config.update(name, value)

    yield tell
    for name, value in before.items():
        jax.config.update(name, value)


def test_folders_that_cannot_be_written(monkeypatch, capsys, told):
    monkeypatch.setenv("ADALINK_CACHE_DIR", "/proc/version/cache")  # Below a file.
    told("jax_compilation_cache_dir", "/proc/version/jax")
    assert cli.main(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert "  !! token cache /proc/version/cache cannot be written" in printed
    assert "  -- compiled programs /proc/version/jax cannot be written" in printed


def test_compiled_programs_have_a_size_or_are_off(monkeypatch, capsys, tmp_path, told):
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path))
    told("jax_compilation_cache_dir", None)
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "jit_step-1-cache").write_bytes(bytes(3 * 2**20))
    told("jax_enable_compilation_cache", True)
    cli.main(["doctor"])
    assert f"  ok compiled programs {tmp_path}/programs, 3 MiB\n" in capsys.readouterr().out
    told("jax_enable_compilation_cache", False)
    cli.main(["doctor"])
    assert "  -- compiled programs are not kept: every start" in capsys.readouterr().out


def test_a_driver_that_fails_is_a_line(monkeypatch, capsys):
    def devices():
        raise RuntimeError("no such platform\nmore")

    monkeypatch.setattr("jax.devices", devices)
    assert cli.main(["doctor"]) == 2
    assert "  !! JAX finds no device: no such platform\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "bounds", "within"),
    [
        ("0.10.2", ">=0.10,<0.12", True), ("0.12", ">=0.10,<0.12", False),
        ("2.13.0+cpu", "==2.13.0", True), ("2.12", "==2.13.0", False),
        ("3", "<3.0", False), ("2.0rc1", ">=2", True),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version, bounds, within):
    assert doctor._within(version, bounds) == within
