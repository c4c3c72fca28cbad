"""One host of several loads a base onto a mesh of all of them, and says how much it read.

Arguments: the base's folder, its format's class of arrays as MODULE:CLASS, port, hosts, number.
"""

import importlib
import json
import sys

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.checkpoints import load_base


def main(folder: str, kind: str, port: str, hosts: str, number: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(hosts), int(number))
    _, whole = load_base(folder)
    flat = traverse_util.flatten_dict(whole, sep="/")
    module, name = kind.split(":")
    array_class = getattr(importlib.import_module(module), name)
    read, taken = array_class.__getitem__, []

    def watched(array, index):
        found = read(array, index)
        taken.append(found.size)
        return found

    array_class.__getitem__ = watched
    # The halves lie on different hosts, where there are two; a host's devices hold the same.
    mesh = Mesh(np.array(jax.devices()).reshape(2, -1), ("model", "data"))
    places = {
        name: NamedSharding(mesh, PartitionSpec("model" if array.shape[0] % 2 == 0 else None))
        for name, array in flat.items()
    }
    shardings = traverse_util.unflatten_dict(places, sep="/")
    _, sharded = load_base(folder, shardings=shardings)
    held = 0
    for name, array in traverse_util.flatten_dict(sharded, sep="/").items():
        assert array.sharding == places[name] and array.shape == flat[name].shape
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, flat[name][shard.index])
        parts = {str(shard.index): shard.data.size for shard in array.addressable_shards}
        held += sum(parts.values())
    total = sum(array.size for array in flat.values())
    print(json.dumps({"read": sum(taken), "held": held, "total": total}))


if __name__ == "__main__":
    main(*sys.argv[1:])
