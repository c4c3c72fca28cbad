"""What test_store.py runs in processes of its own: saves to be killed, refused, or shared."""

import errno
import os
import pathlib
import resource
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.checkpoints.adapters import save_adapter
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config


def state_at(step: int) -> dict:
    """Contents that tell the step in every element."""
    return {
        "step": jnp.int32(step),
        "trainable": {f"a{i}": jnp.full((64, 64), step, jnp.float32) for i in range(20)},
    }


def is_state_at(state: dict, step: int) -> bool:
    return all(bool((leaf == step).all()) for leaf in jax.tree.leaves(state))


def kill_this_process_at(event: str, count: str) -> None:
    """Sends SIGKILL at the count-th audit event of that name, before it takes effect."""
    left = [int(count)]

    def watch(name, _):
        if name == event:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def save_until_killed(folder: str, *event_and_count: str) -> None:
    """Goes on from the latest step, verified; prints each step when it is done."""
    store = Store(folder, keep=1)
    latest = store.latest_step()
    if latest is not None:
        assert is_state_at(store.restore(latest, state_at(0)), latest), latest
    step = latest or 0
    print("open", step, flush=True)
    if event_and_count:
        kill_this_process_at(*event_and_count)
    while True:
        step += 1
        store.save(step, state_at(step))
        store.wait()
        print("saved", step, flush=True)


def refuse_changes_from(count: int) -> None:
    """From the count-th new file or folder on, there is no space for any, nor in others."""
    left = [count]

    def watch(name, arguments):
        if name == "os.mkdir" or (name == "open" and arguments[2] & os.O_CREAT):
            left[0] -= 1
            if left[0] <= 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
                raise OSError(errno.ENOSPC, "No space left on device", arguments[0])

    sys.addaudithook(watch)


def save_where_space_ends(folder: str, count: str) -> None:
    """Space ends while many arrays are written; prints the error."""
    store = Store(f"{folder}/{count}")
    refuse_changes_from(int(count))
    try:
        store.save(1, {f"a{i}": jnp.full((100, 100), i, jnp.float32) for i in range(60)})
        store.wait()
    except UserError as error:
        print(f"store: {error}", flush=True)


def save_without_space(folder: str) -> None:
    """Small files can be written, large ones not; prints the errors."""
    store = Store(f"{folder}/checkpoints")
    store.save(1, {"x": jnp.zeros(8)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    large = jax.random.normal(jax.random.key(0), (300, 300))
    try:
        store.save(2, {"x": large})
        store.wait()
    except UserError as error:
        print(f"store: {error}")
    print("latest", store.latest_step(), Store(f"{folder}/checkpoints").latest_step())
    try:
        save_adapter(
            f"{folder}/adapter",
            {"x": large},
            method_name="adalink",
            settings={"rank": 2},
            architecture=T5Config(vocab_size=8),
            base_fingerprint="",
            route_names=["all"],
            metadata={},
        )
    except UserError as error:
        print(f"adapter: {error}")
    print("left", sorted(os.listdir(folder)), flush=True)


def sharded(value: np.ndarray, mesh: Mesh, *axes: str | None) -> jax.Array:
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def save_and_restore_on_meshes(folder: str, process: str, port: str) -> None:
    """Two processes of four devices save on one mesh and restore on another.

    Then a file of a later step is damaged. Each process checks a share of the files, so only one of
    them sees it, and both must go on from the step before.
    """
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
    assert jax.device_count() == 8
    devices = np.array(jax.devices())
    tall = Mesh(devices.reshape(8, 1), ("data", "model"))
    wide = Mesh(devices.reshape(2, 4), ("data", "model"))
    values = {"a": np.arange(64.0, dtype=np.float32).reshape(8, 8), "b": np.arange(4)}
    store = Store(folder, keep=2)
    saved = {"a": sharded(values["a"], tall, "data", None), "b": sharded(values["b"], tall)}
    store.save(3, saved)
    assert store.latest_step() == 3
    like = {"a": sharded(values["a"] * 0, wide, "data", "model"), "b": sharded(-values["b"], wide)}

    def check(found: dict[str, jax.Array]) -> None:
        for name, array in found.items():
            assert array.sharding == like[name].sharding
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, values[name][shard.index])

    check(store.restore(3, like))
    store.save(5, saved)
    store.wait()
    if process == "0":
        path = next(pathlib.Path(folder, "5", "default", "ocdbt.process_1", "d").iterdir())
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    multihost_utils.sync_global_devices("damaged")
    said: list[str] = []
    check(store.restore_latest(like, said.append))
    assert f"{folder}/5" in said[0] and "damaged" in said[0], said
    assert store.latest_step() == 3
    store.close()
    print("same", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
