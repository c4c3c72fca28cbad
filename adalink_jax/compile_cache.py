"""What XLA has compiled, kept on disk by JAX's own cache, so that a second start compiles nothing.

The folder lies beside the tokenized data. The environment has the last word, in JAX's own names:

* ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off;
* ``JAX_COMPILATION_CACHE_DIR`` names another folder, which JAX then keeps as it is told to;
* ``JAX_COMPILATION_CACHE_MAX_SIZE`` is the most bytes in it.

JAX takes a lock for each read and write, so processes side by side share it. A program in it is
code that will run: a folder that others may write is not used.
"""

import contextlib
import ctypes
import logging
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator

from adalink_jax import files
from adalink_jax.errors import UserError

MOST_BYTES = 2**31
# A write looks at every entry, so their number is bounded too, at the start of a command.
MOST_ENTRIES = 2000

# JAX's name of the event that a compile ends with, and the least seconds of one that leaves much.
_COMPILED, _SECONDS = "/jax/core/compile/backend_compile_duration", 0.5
_ENTRY, _USED = "-cache", "-atime"  # JAX's names: a program, and when it was last used.

logger = logging.getLogger(__name__)


def folder() -> pathlib.Path | None:
    """Returns the folder of programs; None if it is turned off."""
    import jax

    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen is not None:
        return pathlib.Path(chosen)
    beside = files.local_path(os.environ.get("ADALINK_CACHE_DIR") or "~/.cache/adalink_jax")
    return beside.absolute() / "programs"


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps what is compiled inside the block, unless JAX has been told what to keep, or nothing.

    A folder that cannot be used is said in one line, and what is compiled is not kept. Memory that
    the compiler has freed is given back to the system.
    """
    with _memory_given_back(), _programs_kept():
        yield


@contextlib.contextmanager
def _memory_given_back() -> Iterator[None]:
    """Gives memory back after each compile of some size, where C's library can (glibc's can).

    Otherwise some 300 MiB of what a compiler needed stay with the process, beside its steps.
    """
    import jax

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if trim is not None and event == _COMPILED and duration_secs > _SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def _programs_kept() -> Iterator[None]:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    place = None
    try:
        if jax.config.values["jax_compilation_cache_dir"] is None and (place := folder()):
            _prepare(place)
    except (OSError, UserError) as error:
        logger.warning("what is compiled is not kept: %s", error)
        place = None
    if place is None:
        yield
        return
    sizes = {
        "jax_compilation_cache_max_size": MOST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    wanted = {name: value for name, value in sizes.items() if name.upper() not in os.environ}
    wanted["jax_compilation_cache_dir"] = str(place)
    before = {name: jax.config.values[name] for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # A program that has compiled before looks no more.
        with _said_once(place):
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _prepare(place: pathlib.Path) -> None:
    """Makes the folder, and removes what a killed process left and the oldest of too many.

    JAX writes an entry, then its time; a kill between them would end all later writes.
    """
    import filelock

    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = place.stat()
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"others may write to {place}; set JAX_COMPILATION_CACHE_DIR to a folder")
    with contextlib.suppress(filelock.Timeout), filelock.FileLock(place / ".lockfile", timeout=10):
        used = {}
        for path in place.glob(f"*{_USED}"):
            used[path.name.removesuffix(_USED)] = path.stat().st_mtime_ns
        there = {path.name.removesuffix(_ENTRY) for path in place.glob(f"*{_ENTRY}")}
        latest = sorted(there & used.keys(), key=lambda key: -used[key])[:MOST_ENTRIES]
        for key in (there | used.keys()) - {*latest}:
            for suffix in (_ENTRY, _USED):
                (place / f"{key}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def _said_once(place: pathlib.Path) -> Iterator[None]:
    """Turns JAX's warnings of this cache, two lines for each program, into one line for all."""
    with warnings.catch_warnings():
        show, said = warnings.showwarning, False

        def shown(message, *about, **more) -> None:
            nonlocal said
            text = str(message)
            if "persistent compilation cache" not in text:
                return show(message, *about, **more)
            if not said:
                said = True
                reason = text.partition("': ")[2].partition("\n")[0] or text
                logger.warning(
                    "the compiled programs in %s cannot all be used (%s): these are compiled anew; "
                    "it is safe to delete the folder",
                    *(place, reason),
                )

        warnings.showwarning = shown
        yield
