"""`adalink doctor`: what it finds, what it says of what is missing, and its exit code."""

import importlib.metadata
import pathlib
import re
import shutil

import jax
import pytest

import tasks
from adalink_jax import cli, shipped
from adalink_jax.errors import install
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
    (tmp_path / "glue" / "WNLI").mkdir(parents=True)
    (tmp_path / "glue" / "WNLI" / "train.tsv").touch()
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "glue"))
    monkeypatch.setenv("VOCABULARY", "/no/such.model")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "  ok jax 0.10.2\n",
        "  ok 1 of cpu (cpu)\n",
        f"  ok token cache {tmp_path}/not/yet\n",
        f"  ok GLUE_DIR={tmp_path}/glue: WNLI: train not compared\n",
        "  -- VOCABULARY=/no/such.model cannot be read: No such file or directory\n"
        "     mend it: export VOCABULARY=",
        "adalink train and adalink eval can run\n",
    ):
        assert line in printed
    assert "!!" not in printed and not (tmp_path / "not").exists()


def test_what_is_missing_is_said_with_the_line_that_mends_it(installed, capsys):
    installed(REQUIRED, jax="0.9.9")
    assert cli.main(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert (f"  !! tensorflow is not installed (<3,>=2.18)\n     mend it: {install()}\n") in printed
    assert "qwix is not installed (<0.2,>=0.1.8), of [int8]: frozen bases in int8" in printed
    assert f"     mend it: {install('int8')}\n" in printed
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


def test_real_files_are_as_published(shared_data, capsys, monkeypatch):
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab/spiece.model"))
    found = {finding.text.split(": ", 1)[-1]: finding.state for finding in doctor.data()}
    for task in ("CoLA", "SST-2", "MRPC", "STS-B", "RTE"):
        assert found[f"{task}: dev, test, train as published"] == "ok"
    # These are parts of what was published.
    assert found["QNLI: train.tsv has 9,999 rows of 104,743; dev, test as published"] == "--"
    assert found["MNLI: train.tsv has 9,999 rows of 392,702; dev_matched not compared"] == "--"
    assert found["T5's and FLAN-T5's, as published"] == "ok"


def test_another_file_is_said(shared_data, tmp_path):
    shutil.copytree(shared_data / "glue/RTE", tmp_path / "RTE")
    dev, test = tmp_path / "RTE/dev.tsv", tmp_path / "RTE/test.tsv"
    dev.write_bytes(dev.read_bytes()[:-1] + b"x")
    test.write_bytes(test.read_bytes()[:-9])
    (finding,) = doctor.glue(tmp_path)
    assert finding.state == "--"
    assert finding.text.endswith(
        "RTE: dev.tsv is as long as the published one, but not the same; "
        "test.tsv has 933,960 bytes, published are 933,969; train as published"
    )
    changed = tmp_path / "spiece.model"
    changed.write_bytes(b"abc")
    finding = doctor.vocabulary(str(changed), "VOCABULARY=a")
    assert finding.state == "--" and finding.mend.startswith("export VOCABULARY=")
    assert finding.text == "VOCABULARY=a is not T5's: 3 bytes, where that has 791,656"


def test_the_vocabulary_of_a_base(tmp_path, monkeypatch, capsys):
    (tmp_path / "base").mkdir()
    own = tmp_path / "base" / "vocabulary.model"
    own.touch()
    finding = doctor.vocabulary(str(own.parent), "VOCABULARY=base")
    assert finding == doctor.Finding("ok", f"VOCABULARY=base: the base's own, {own}")
    # A name whose package is not there is said by doctor, and stops nothing that reads no text.
    monkeypatch.setattr(shipped, "_PACKAGE", "adalink_jax_none")
    monkeypatch.setenv("VOCABULARY", "english")
    finding = doctor.vocabulary("english", "VOCABULARY=english")
    assert finding.state == "--" and "'english' is a base of the package" in finding.text
    describe = ["describe", "--gin_file=models/tiny.gin", "--gin_file=methods/adalink.gin"]
    assert cli.main(describe) == 0
    assert cli.main([*describe, "--gin.VOCABULARY=english"]) == 2
    capsys.readouterr()
    train = ["train", "--gin_file=experiments/glue_adalink.gin", f"--gin.MODEL_DIR={tmp_path}/run"]
    train += ["--gin.MIXTURE_OR_TASK_NAME=glue_rte", "--gin.INITIAL_CHECKPOINT_PATH=mini"]
    tasks.write_glue_folder(tmp_path / "glue")
    assert cli.main([*train, f"--gin.GLUE_DIR={tmp_path / 'glue'}"]) == 2
    assert "'english' is a base of the package adalink-jax-bases" in capsys.readouterr().err


def test_a_base_is_opened(installed, capsys):
    installed([])
    assert cli.main(["doctor", "--base=mini"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"  ok .*mini: T5 of 1,050,624 parameters, 3 \+ 2 layers of width 128\n", printed
    )
    assert cli.main(["doctor", "--base=nobody/nothing"]) == 2
    assert "!! base checkpoint nobody/nothing: no such folder" in capsys.readouterr().out


def test_a_chip_that_is_not_used_is_said(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    seen = []
    glob = pathlib.Path.glob

    def devices(folder, pattern):
        if str(folder) != "/dev":
            return glob(folder, pattern)
        seen.append(pattern)
        return iter(["/dev/nvidiactl"] if pattern == "nvidiactl" else [])

    monkeypatch.setattr(pathlib.Path, "glob", devices)
    states = [(finding.state, finding.mend) for finding in doctor.devices()]
    assert states[1:] == [("--", install("cuda12"))] and len(seen) == 2


def test_the_page_of_files_has_the_same_digests():
    page = pathlib.Path(__file__).parents[2] / "docs/howto/files.md"
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    listed = {name: (int(size.replace(",", "")), digest) for name, size, digest in rows}
    assert {"spiece.model": doctor.T5_VOCABULARY, **doctor.GLUE}.items() <= listed.items()
