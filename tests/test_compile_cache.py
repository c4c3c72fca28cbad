"""What is compiled is kept for the next start: counted, bounded, and safe from what kills leave."""

import os
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from adalink_jax import compile_cache

OURS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


@pytest.fixture
def untold(monkeypatch, tmp_path):
    """JAX as a user has it, who has told it nothing; our folder is a new one."""
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def counted():
    """Counts JAX's events by the last part of their names."""
    counts = {"requests": 0, "cache_hits": 0}

    def heard(name, **_):
        key = name.rpartition("/")[2].replace("compile_requests_use_cache", "requests")
        if key in counts:
            counts[key] += 1

    jax.monitoring.register_event_listener(heard)
    yield counts
    jax.monitoring.unregister_event_listener(heard)


def start(number=3):
    """A start of a command that compiles two programs; returns what they compute."""
    jax.clear_caches()
    with compile_cache.kept():
        x = np.arange(number, dtype=np.float32)
        return float(jax.jit(lambda x: jnp.sum(x * x))(x)), float(jax.jit(lambda x: x[0] - 1)(x))


def test_a_second_start_compiles_nothing(untold, counted):
    assert start() == (5.0, -1.0)
    first = dict(counted)
    assert first["requests"] > 1 and first["cache_hits"] == 0
    assert start() == (5.0, -1.0)
    assert counted == {"requests": 2 * first["requests"], "cache_hits": first["requests"]}
    assert untold.stat().st_mode & 0o77 == 0
    # Outside of the block JAX keeps nothing, as before.
    assert jax.config.values["jax_compilation_cache_dir"] is None
    entries = set(untold.iterdir())
    jax.jit(lambda x: x + 17)(1.0)
    assert set(untold.iterdir()) == entries


def test_the_environment_has_the_last_word(untold, counted, tmp_path):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        start()
        assert compile_cache.folder() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    compilation_cache.reset_cache()
    start()
    assert compile_cache.folder() == tmp_path / "theirs"
    assert not untold.exists() and list((tmp_path / "theirs").glob("*-cache"))


def test_what_a_kill_left_and_the_oldest_of_too_many_go(untold, monkeypatch, counted):
    start(3)
    start(4)
    several = sorted(untold.glob("*-atime"), key=lambda path: path.stat().st_mtime_ns)
    assert len(several) == len(list(untold.glob("*-cache"))) > 3
    # Between an entry and its time; between the two of an eviction; in the middle of an entry.
    half = untold / several[-1].name.replace("-atime", "-cache")
    half.write_bytes(half.read_bytes()[:9])
    several[-1].unlink()
    (untold / several[-2].name.replace("-atime", "-cache")).unlink()
    monkeypatch.setattr(compile_cache, "MOST_ENTRIES", 2)
    compile_cache._prepare(untold)
    left = {path.name for path in untold.iterdir()} - {".lockfile"}
    kept = {path.name.removesuffix("-atime") for path in several[-4:-2]}
    assert left == {f"{key}{suffix}" for key in kept for suffix in ("-cache", "-atime")}
    assert start(4) == (14.0, -1.0)
    assert len(list(untold.glob("*-cache"))) == len(list(untold.glob("*-atime")))


def test_a_damaged_program_is_one_line_and_compiled_anew(untold, caplog, recwarn):
    start()
    for path in untold.glob("*-cache"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert start() == (5.0, -1.0)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "adalink_jax.compile_cache"]
    assert line.startswith(f"the compiled programs in {untold} cannot all be used (")
    assert line.endswith("it is safe to delete the folder") and "\n" not in line
    assert not [one for one in recwarn if "compilation cache" in str(one.message)]


def test_a_folder_that_others_may_write_is_not_used(untold, caplog):
    untold.mkdir(mode=0o700)
    untold.chmod(0o770)
    assert start() == (5.0, -1.0)
    assert "what is compiled is not kept: others may write to" in caplog.text
    untold.rmdir()
    untold.write_text("a file")
    assert start() == (5.0, -1.0)
    assert "File exists" in caplog.text


def test_processes_side_by_side_share_it(untold):
    """Each reads and writes while the other does; none says a word of it."""
    code = (
        "import jax, numpy as np\n"
        "from adalink_jax import compile_cache\n"
        "with compile_cache.kept():\n"
        "    print([int(jax.jit(lambda x, n=n: x[0] + n)(np.ones(2))) for n in range(12)])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    done = []

    def run():
        done.append(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in done:
        assert (one.returncode, one.stderr) == (0, b"")
        assert one.stdout.strip() == str(list(range(1, 13))).encode()
    assert len(list(untold.glob("*-cache"))) == len(list(untold.glob("*-atime"))) >= 12


_TRAIN = """
import sys, jax
from adalink_jax import cli
counts = {}
def heard(name, **_):
    counts[name] = counts.get(name, 0) + 1
jax.monitoring.register_event_listener(heard)
code = cli.main(sys.argv[1:])
asked = counts["/jax/compilation_cache/compile_requests_use_cache"]
print("compiled", asked - counts.get("/jax/compilation_cache/cache_hits", 0), "of", asked)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_second_training_and_scoring_compile_nothing(tmp_path, mini_base, token_cache):
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment["ADALINK_CACHE_DIR"] = str(tmp_path / "cache")

    def adalink(*words):
        command = [sys.executable, "-c", _TRAIN, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        words = done.stdout.splitlines()[-1].split()
        return int(words[1]), int(words[3])

    shared = (f"--gin.INITIAL_CHECKPOINT_PATH={mini_base}", "--gin.Evaluation.limit=8")

    def train(folder):
        return adalink(
            "train", "--gin_file=experiments/mini_adalink.gin", *shared,
            f"--gin.MODEL_DIR={folder}", "--gin.TRAIN_STEPS=3", "--gin.BATCH_SIZE=4",
        )  # fmt: skip

    def score(folder, output):
        return adalink(
            "eval", "--gin_file=experiments/mini_eval.gin", *shared,
            f"--gin.ADAPTER_PATH={folder}", f"--gin.EVAL_OUTPUT_DIR={output}",
        )  # fmt: skip

    compiled, asked = train(tmp_path / "a")
    assert compiled == asked > 3
    assert train(tmp_path / "b") == (0, asked)
    score(tmp_path / "a", tmp_path / "c")
    assert score(tmp_path / "b", tmp_path / "d")[0] == 0
    name = "adapter/adapter.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_memory_of_a_compile_is_given_back(monkeypatch, untold):
    trims = []
    library = types.SimpleNamespace(malloc_trim=trims.append)
    monkeypatch.setattr(compile_cache.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(compile_cache, "_SECONDS", 0.0)
    with compile_cache.kept():
        jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)))
    inside = len(trims)
    assert inside and set(trims) == {0}
    jax.block_until_ready(jax.jit(lambda x: x * 5 + 1)(jnp.ones(7)))
    assert len(trims) == inside
    monkeypatch.setattr(compile_cache.ctypes, "CDLL", lambda name: object())
    with compile_cache.kept():  # As where C's library has no such function.
        jax.block_until_ready(jax.jit(lambda x: x * 7 + 1)(jnp.ones(7)))
