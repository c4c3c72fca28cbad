"""What is written whole: old or new at any moment, and one line where it cannot be written."""

import errno
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from adalink_jax import files
from adalink_jax.errors import UserError

ROOT = pathlib.Path(files.__file__).resolve().parents[1]


def refusing(code: int):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refuse


def put_file(path, content: str) -> None:
    files.write_text(path, content)


def put_folder(path, content: str) -> None:
    with files.replaced_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text(content)


def found_at(path: pathlib.Path) -> str:
    return path.read_text() if path.is_file() else (path / "below" / "file").read_text()


PUTS = pytest.mark.parametrize("put", [put_file, put_folder])


@PUTS
def test_folders_above_are_made_and_what_was_there_is_replaced(put, tmp_path):
    path = tmp_path / "deep" / "place"
    put(path, "old é")
    put(path, "new é")
    assert found_at(path) == "new é"
    assert os.listdir(path.parent) == ["place"]


def test_a_file_is_as_readable_as_the_users_others(tmp_path):
    (tmp_path / "usual").write_text("")
    files.write_text(tmp_path / "ours", "")
    usual, ours = ((tmp_path / name).stat().st_mode for name in ("usual", "ours"))
    assert stat.S_IMODE(usual) == stat.S_IMODE(ours)


def test_text_is_utf8_with_unix_line_breaks(tmp_path):
    files.write_text(tmp_path / "text", "é\n\r\n")
    assert (tmp_path / "text").read_bytes() == "é\n\r\n".encode()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize(
    ("put", "owner", "function"),
    [
        (put_file, os, "fsync"),
        (put_file, os, "replace"),
        (put_file, pathlib.Path, "open"),
        (put_folder, os, "fsync"),
        (put_folder, os, "rename"),
        (put_folder, os, "mkdir"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_what_was_there(
    put, owner, function, code, tmp_path, monkeypatch
):
    path = tmp_path / "place"
    put(path, "old")
    monkeypatch.setattr(owner, function, refusing(code))
    with pytest.raises(UserError) as caught:
        put(path, "new")
    monkeypatch.undo()
    advice = "; free some space on its disk" if code == errno.ENOSPC else ""
    assert str(caught.value) == f"{path} cannot be written: {os.strerror(code)}{advice}"
    assert found_at(path) == "old"
    assert os.listdir(tmp_path) == ["place"]


@PUTS
def test_an_error_of_the_writer_leaves_what_was_there(put, tmp_path):
    path = tmp_path / "place"
    put(path, "old")
    with pytest.raises(UnicodeEncodeError):
        put(path, "half of an emoji: \ud83d")
    assert found_at(path) == "old"
    assert os.listdir(tmp_path) == ["place"]


KILLED = """
import os, pathlib, signal, sys
from adalink_jax import files

def put_file(path, content):
    files.write_text(path, content)

def put_folder(path, content):
    with files.replaced_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text(content)

def watch(event, arguments):
    global left
    if event.split(".")[0] in ("os", "open", "shutil"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

put, path = globals()[sys.argv[1]], pathlib.Path(sys.argv[2])
for event in range(1, 100):
    put(path, "old")
    child = os.fork()
    if child == 0:
        left = event
        sys.addaudithook(watch)
        put(path, "new")
        os._exit(0)
    killed = os.waitpid(child, 0)[1]
    here = files.present_folder(path)
    print((here if here.is_file() else here / "below" / "file").read_text(), flush=True)
    if not killed:
        break
put(path, "after")
"""


@pytest.mark.parametrize("put", ["put_file", "put_folder"])
def test_killed_at_any_moment_the_old_or_the_new_is_there(put, tmp_path):
    """Killed before the first event, the second, and so on, until one is not killed."""
    path = tmp_path / "place"
    command = [sys.executable, "-c", KILLED, put, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seen = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert 5 < len(seen) < 99 and set(seen) == {"old", "new"} and seen[-1] == "new"
    assert found_at(path) == "after"
    assert os.listdir(tmp_path) == ["place"]


@PUTS
def test_what_blocks_the_way_is_named(put, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/place cannot be written: .*: .*/file$"):
        put(tmp_path / "file" / "place", "")


def test_a_new_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    for name in ("new", "used", "mine"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no such task"):
            with files.held(tmp_path / name, "MODEL_DIR"):
                if name == "used":
                    (tmp_path / name / "run.json").write_text("{}")
                raise UserError("no such task")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "used"]
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["run.json"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"link is a link to .*/gone, which is not there$"):
        with files.held(tmp_path / "link", "MODEL_DIR"):
            pass
    with pytest.raises(UserError, match=r"run cannot be written: .*link is a link to .*/gone"):
        with files.held(tmp_path / "link" / "run", "MODEL_DIR"):
            pass


def test_a_folder_in_the_place_of_a_file_is_a_mistake(tmp_path):
    (tmp_path / "place" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match="place cannot be written: Is a directory"):
        files.write_text(tmp_path / "place", "")
    assert os.listdir(tmp_path) == ["place"]


def test_a_new_folder_overwrites_nothing(tmp_path):
    with files.new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"
    with pytest.raises(UserError, match="exists and is not overwritten"):
        with files.new_folder(tmp_path / "a" / "b"):
            raise AssertionError("it was opened")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        with files.new_folder(tmp_path / "late"):
            (tmp_path / "late").mkdir()  # By another process.
    assert not any((tmp_path / "late").iterdir())
    assert sorted(os.listdir(tmp_path)) == ["a", "late"]


def writes_of(path: str):
    yield lambda: files.write_text(path, "")
    yield lambda: files.new_folder(path).__enter__()
    yield lambda: files.replaced_folder(path).__enter__()
    yield lambda: files.local_path(pathlib.Path(path) / "name")


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/x"])
def test_urls_are_refused_and_no_folder_of_that_name_is_made(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in writes_of(path):
        with pytest.raises(UserError, match="this machine's file system only"):
            write()
    assert os.listdir(tmp_path) == []


def test_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files.write_text("~/runs/a", "x")
    assert (tmp_path / "runs" / "a").read_text() == "x"


def test_file_systems_without_fsync_of_folders_are_written(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    put_file(tmp_path / "file", "x")
    put_folder(tmp_path / "folder", "x")
    assert found_at(tmp_path / "file") == found_at(tmp_path / "folder") == "x"
