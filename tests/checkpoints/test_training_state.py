"""The store of training states: exact, strict, atomic."""

import errno
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adalink_jax.checkpoints import training_state
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.errors import UserError

PROCESS = pathlib.Path(__file__).with_name("store_process.py")
ROOT = PROCESS.parent.parent.parent


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(PROCESS), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture
def state():
    """A training state with all that optax and JAX put into one."""
    trainable = {
        "encoder": {
            "adalink": {
                "down": jax.random.normal(jax.random.key(0), (2, 8, 4)),
                "up": jnp.full((2, 4, 8), -0.0),
            }
        }
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adam(1e-3), {"encoder": {"adalink": {"down": True, "up": False}}}),
        optax.adafactor(1e-3, min_dim_size_to_factor=4),
        optax.MultiSteps(optax.sgd(1e-3), 2).gradient_transformation(),
    )
    odd = jnp.array([jnp.nan, jnp.inf, 1e-40, -0.0], jnp.float32)
    return {
        "trainable": trainable,
        "optimizer": optimizer.init(trainable),
        "step": jnp.int32(7),
        "key": jax.random.key_data(jax.random.key(3)),
        "done": jnp.array([True, False]),
        "odd": odd,
        "nothing": None,
        "empty": {},
    }


def bits(array):
    array = np.asarray(array)
    return array.shape, array.dtype, array.tobytes()


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert list(map(bits, jax.tree.leaves(found))) == list(map(bits, jax.tree.leaves(expected)))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_states_return_bit_for_bit_into_their_structure(tmp_path, state):
    store = Store(tmp_path / "checkpoints")
    assert store.latest_step() is None
    store.save(7, state)
    store.close()
    store = Store(tmp_path / "checkpoints")
    assert store.latest_step() == 7
    same(store.restore(7, abstract(state)), state)
    same(store.restore(7, jax.tree.map(jnp.zeros_like, state)), state)
    store.close()


def test_the_latest_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    for step in (1, 5, 30, 200):
        store.save(step, {"x": jnp.float32(step)})
    store.wait()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["200", "30"]
    assert store.latest_step() == 200
    assert store.restore(30, {"x": jnp.float32(0)}) == {"x": 30}
    store.close()
    with pytest.raises(UserError, match="keep_checkpoints is 0"):
        Store(tmp_path, keep=0)


def test_training_goes_on_while_a_step_is_written(tmp_path, monkeypatch):
    go_on, finalize = threading.Event(), training_state._Handler.finalize

    def late(self, directory):
        assert go_on.wait(timeout=60)
        finalize(self, directory)

    monkeypatch.setattr(training_state._Handler, "finalize", late)
    store, tree = Store(tmp_path), {"x": jnp.arange(1_000_000.0), "y": jnp.arange(3.0)}
    store.save(1, tree)
    # The arrays may be overwritten now; the step is not visible before it is whole.
    overwritten = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    assert not any(jax.tree.leaves(jax.tree.map(lambda x: (x != -1).any(), overwritten(tree))))
    assert not (tmp_path / "1").exists()
    go_on.set()
    store.wait()
    assert (tmp_path / "1").exists() and store.latest_step() == 1
    like = {"x": jnp.zeros(1_000_000), "y": jnp.zeros(3)}
    same(store.restore(1, like), {"x": jnp.arange(1_000_000.0), "y": jnp.arange(3.0)})
    store.close()


@pytest.mark.parametrize("years", [-12, 12])
def test_a_clock_that_is_set_while_a_step_is_written_changes_nothing(tmp_path, monkeypatch, years):
    go_on, finalize, now = threading.Event(), training_state._Handler.finalize, time.time

    def late(self, directory):
        assert go_on.wait(timeout=60)
        finalize(self, directory)

    monkeypatch.setattr(training_state._Handler, "finalize", late)
    store = Store(tmp_path)
    store.save(1, {"x": jnp.float32(1)})
    monkeypatch.setattr(time, "time", lambda: now() + years * 365 * 86_400)
    go_on.set()
    store.wait()
    assert store.restore(1, {"x": jnp.float32(0)}) == {"x": 1}
    store.close()


def test_what_the_threads_cannot_write_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def refuse(directory):
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    for call in (
        lambda store: store.wait(),
        lambda store: store.save(3, {"x": jnp.float32(3)}),
        lambda store: store.latest_step(),
        lambda store: store.close(),
    ):
        store = Store(tmp_path)
        if store.latest_step() is None:
            store.save(1, {"x": jnp.float32(1)})
            store.wait()
        with monkeypatch.context() as patch:
            patch.setattr(training_state.sums, "write", refuse)
            store.save(2, {"x": jnp.float32(2)})
            with pytest.raises(UserError, match="step 2 cannot be written: .*No space left"):
                call(store)
        assert store.latest_step() == 1
        assert store.restore(1, {"x": jnp.float32(0)}) == {"x": 1}
        store.close()


def test_going_backwards_is_a_mistake_of_the_caller(tmp_path):
    store = Store(tmp_path)
    store.save(5, {"x": jnp.float32(5)})
    for step in (5, 4):
        with pytest.raises(ValueError, match="after step 5"):
            store.save(step, {"x": jnp.float32(0)})
    assert store.restore(5, {"x": jnp.float32(0)}) == {"x": 5}
    store.close()


def test_another_state_is_refused_by_name(tmp_path, capfd):
    store = Store(tmp_path)
    store.save(2, {"a": {"x": jnp.zeros((2, 3)), "y": jnp.zeros(2)}, "n": jnp.int32(1)})
    vector, matrix, count = jnp.zeros(2), jnp.zeros((2, 3)), jnp.int32(0)
    for like, words in [
        ({"a": {"x": matrix}, "n": count}, ["unexpected (1): a/y"]),
        ({"a": {"x": matrix, "y": vector, "z": vector}, "n": count}, ["missing (1): a/z"]),
        ({"a": {"x": matrix.T, "y": vector}, "n": count}, ["a/x", "[3, 2]", "[2, 3]"]),
        ({"a": {"x": matrix, "y": vector}, "n": jnp.float32(0)}, ["n is int32", "float32"]),
    ]:
        with pytest.raises(UserError) as caught:
            store.restore(2, like)
        message = str(caught.value)
        assert "\n" not in message
        for word in (tmp_path / "2", *words):
            assert str(word) in message
    with pytest.raises(UserError, match="3 does not exist"):
        store.restore(3, {"x": vector})
    store.close()
    assert capfd.readouterr().err == ""


def test_unfinished_steps_are_not_seen_and_are_removed(tmp_path):
    store = Store(tmp_path)
    store.save(3, {"x": jnp.float32(3)})
    store.close()
    (tmp_path / "8.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    store = Store(tmp_path)
    assert store.latest_step() == 3
    store.save(9, {"x": jnp.float32(9)})
    assert store.restore(9, {"x": jnp.float32(0)}) == {"x": 9}
    store.close()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["9", "notes"]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A store with the steps 1 and 2, as written; whoever alters one takes a copy."""
    folder = tmp_path_factory.mktemp("steps") / "checkpoints"
    store = Store(folder, keep=2)
    for step in (1, 2):
        store.save(step, numbers(step))
    store.close()
    return folder


def numbers(step):
    return {"a": jax.random.normal(jax.random.key(step), (40, 3)), "step": jnp.int32(step)}


def restored(folder):
    """The state that the store in a folder goes on from, and what it says."""
    said = []
    store = Store(folder, keep=2)
    try:
        return store.restore_latest(numbers(0), said.append), said
    finally:
        store.close()


def change(path, kind, generator):
    """Flips a bit of a file, cuts it, or removes it."""
    content = bytearray(path.read_bytes())
    place = generator.randrange(len(content))
    if kind == "gone":
        path.unlink()
        return
    content[place] ^= 1 << generator.randrange(8)
    path.write_bytes(content[:place] if kind == "cut" else content)


def damaged_and_restored(two_steps, place, count, seed):
    """Alters one file of step 2 after the other; what comes back is step 2, or 1 with a line."""
    generator = random.Random(seed)
    paths = sorted(p.relative_to(two_steps) for p in (two_steps / "2").rglob("*") if p.is_file())
    for number in range(count):
        path, kind = paths[number % len(paths)], generator.choice(["bit", "bit", "cut", "gone"])
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(two_steps, place)
        change(place / path, kind, generator)
        state, said = restored(place)
        step = int(state["step"])
        same(state, numbers(step))
        names = {child.name for child in place.iterdir()}
        if step == 1:
            assert said[0].startswith(f"training checkpoint {place}/2 is damaged"), said
            assert len(said) == 1 and said[0].isprintable() and "2.damaged" in said[0]
            assert names == {"1", "2.damaged"}
        else:  # What changed holds no numbers: Orbax's times, or the sums themselves.
            assert names == {"1", "2"} and "ocdbt" not in str(path), (path, kind)


def test_a_damaged_file_gives_the_step_before_and_never_other_numbers(tmp_path, two_steps):
    damaged_and_restored(two_steps, tmp_path / "copy", 56, seed=0)


@pytest.mark.slow
def test_a_thousand_damaged_files_give_no_other_numbers(tmp_path, two_steps):
    damaged_and_restored(two_steps, tmp_path / "copy", 1000, seed=1)


def test_a_step_is_named_where_no_other_is_whole(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path / "all")
    for step in (1, 2):
        (path,) = (tmp_path / "all" / str(step) / "default" / "d").iterdir()
        change(path, "bit", random.Random(0))
    with pytest.raises(UserError) as caught:
        restored(tmp_path / "all")
    message = str(caught.value)
    assert message.startswith(f"training checkpoint {tmp_path}/all/2 is damaged: ")
    assert path.name in message and "no other checkpoint is whole" in message
    assert message.isprintable()
    assert sorted(child.name for child in (tmp_path / "all").iterdir()) == ["1", "2"]


def test_damaged_steps_are_kept_and_the_run_saves_again(tmp_path, two_steps):
    shutil.copytree(two_steps, tmp_path / "steps")
    for turn in (1, 2):
        (path,) = (tmp_path / "steps" / "2" / "default" / "d").iterdir()
        change(path, "cut", random.Random(turn))
        store = Store(tmp_path / "steps", keep=2)
        assert int(store.restore_latest(numbers(0), print)["step"]) == 1
        assert store.latest_step() == 1
        store.save(2, numbers(2))
        store.close()
    state, said = restored(tmp_path / "steps")
    same(state, numbers(2))
    assert said == []
    names = sorted(child.name for child in (tmp_path / "steps").iterdir())
    assert names == ["1", "2", "2.damaged", "2.damaged.2"]


def test_steps_without_sums_are_restored_and_said_to_be_unchecked(tmp_path, two_steps):
    """As earlier versions wrote them."""
    shutil.copytree(two_steps, tmp_path / "old")
    (tmp_path / "old" / "2" / "default" / "SHA256SUMS").unlink()
    state, said = restored(tmp_path / "old")
    same(state, numbers(2))
    assert said == [
        f"training checkpoint {tmp_path}/old/2 has no SHA256SUMS: not checked for damage"
    ]


def test_sha256sum_checks_a_step(two_steps):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=two_steps / "2" / "default", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "manifest.ocdbt: OK" in done.stdout and "_METADATA: OK" in done.stdout


def test_damage_is_said_in_one_line(tmp_path):
    store = Store(tmp_path)
    store.save(1, {"x": jnp.arange(4096.0)})
    store.wait()
    for path in tmp_path.rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)
    store.close()
    store = Store(tmp_path)
    with pytest.raises(UserError, match="1 is damaged") as caught:
        store.restore(1, {"x": jnp.zeros(4096)})
    assert "\n" not in str(caught.value)
    store.close()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/checkpoints: cannot be used: .*Not a directory"):
        Store(tmp_path / "file" / "checkpoints")


def test_no_space_is_said_and_leaves_the_step_before(tmp_path):
    process = start("save_without_space", tmp_path)
    output, errors = process.communicate(timeout=120)
    lines = output.splitlines()
    assert process.returncode == 0, errors
    assert lines[0].startswith(f"store: training checkpoints {tmp_path}/checkpoints: step 2")
    assert lines[0].endswith("File too large")
    assert lines[1] == "latest 1 1"
    refused = f"adapter: {tmp_path}/adapter cannot be written: File too large"
    assert lines[2] == f"{refused}; raise the limit of file sizes (ulimit -f)"
    assert lines[3] == "left ['checkpoints']"
    assert len(lines) == 4
    assert "Traceback" not in errors  # Of Orbax's threads, which log what they raise.


@pytest.mark.parametrize("count", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_where_space_ends_one_error_speaks_for_all_arrays(tmp_path, count):
    output, errors = start("save_where_space_ends", tmp_path, count).communicate(timeout=120)
    assert len(output.splitlines()) == 1 and "step 1 cannot be written" in output
    assert "Traceback" not in errors, errors[-2000:]


def opened_at(process):
    """The latest step, which the child restored and verified before it said so."""
    opened = process.stdout.readline().split()
    assert opened[:1] == ["open"], process.communicate()[1]
    return int(opened[1])


def finished_when_killed(process):
    """The last step that the child announced, or None."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == -9, errors
    lines = [line for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return max((int(line.split()[1]) for line in lines), default=None)


@pytest.mark.slow
def test_killed_at_any_moment_the_last_finished_step_is_there(tmp_path):
    generator = random.Random(0)
    announced = 0
    for _ in range(8):
        process = start("save_until_killed", tmp_path)
        # A step may have been finished and its announcement killed; none may be lost.
        step = opened_at(process)
        assert announced <= step <= announced + 1
        for _ in range(generator.randrange(1, 4)):
            announced = int(process.stdout.readline().split()[1])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0, 0.12))
        process.kill()
        announced = finished_when_killed(process) or announced
    store = Store(tmp_path)
    assert store.latest_step() in (announced, announced + 1)
    store.close()


@pytest.mark.slow
def test_killed_at_the_moments_that_matter(tmp_path):
    step = 0
    # Making the folders of a step, publishing its arrays, publishing the step, deleting the old.
    for event, count in [
        ("os.rename", 4),
        ("os.mkdir", 2),
        ("os.rename", 1),
        ("os.rename", 2),
        ("shutil.rmtree", 1),
        ("os.rmdir", 1),
    ]:
        process = start("save_until_killed", tmp_path, event, count)
        # The last save before the kill may have been finished and not announced.
        opened = opened_at(process)
        assert step <= opened <= step + 1, (event, count)
        step = finished_when_killed(process) or opened
    assert step > 0
    store = Store(tmp_path)
    assert store.latest_step() in (step, step + 1)
    store.save(step + 2, {"x": jnp.float32(0)})
    store.wait()
    assert [child.name for child in tmp_path.iterdir()] == [str(step + 2)]
    store.close()


@pytest.mark.slow
def test_two_processes_save_and_restore_on_another_mesh(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=4"
    processes = [
        start("save_and_restore_on_meshes", tmp_path, i, port, XLA_FLAGS=flags) for i in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and "same" in output, errors
    # The same checkpoint restores in this one process, on one device.
    store = Store(tmp_path)
    found = store.restore(3, {"a": jnp.zeros((8, 8)), "b": jnp.zeros(4, jnp.int32)})
    np.testing.assert_array_equal(found["a"], np.arange(64.0).reshape(8, 8))
    store.close()
