"""Trains methods on meshes of virtual CPU devices and prints the losses as JSON.

Run as a process of its own: ``mesh_losses.py MESH…``. A mesh is like 4x2 (data × model) or 2x2x2
(slice × data × model), with an f behind it where parameters are fully sharded; 1x1 is one device.
METHODS in the environment names those that are wanted, like "lora full", default those below;
FROZEN_DTYPE in which the base is stored.
Several processes join by the environment that `adalink_jax.distributed.hosts.joined` reads.
"""

import dataclasses
import json
import math
import os
import sys

import jax
import numpy as np

from adalink_jax.distributed import hosts, sharding
from adalink_jax.methods import METHODS
from adalink_jax.models import parameters
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training import optimizers, state, step

STEPS = 20
BATCH_SIZE = 16
KWARGS = {"prompt_tuning": {"length": 2}, "prefix_tuning": {"length": 2}}
# The paper's, and those that read what a mesh splits: kernels, and keys by heads.
NAMES = ("adalink", "lora", "prompt_tuning", "full", "dora", "prefix_tuning")
CONFIG = T5Config(
    vocab_size=48,
    emb_dim=16,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=24,
    mlp_activations=("gelu", "linear"),
    dropout_rate=0.1,
)


def batches() -> list[dict[str, np.ndarray]]:
    """One global batch for each step, with padding at random places' ends."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(STEPS):
        inputs = rng.integers(3, 48, (BATCH_SIZE, 7)).astype(np.int32)
        targets = rng.integers(3, 48, (BATCH_SIZE, 4)).astype(np.int32)
        inputs[np.arange(7) >= rng.integers(2, 8, (BATCH_SIZE, 1))] = 0
        targets[np.arange(4) >= rng.integers(1, 5, (BATCH_SIZE, 1))] = 0
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        result.append(
            {
                "encoder_input_tokens": inputs,
                "decoder_input_tokens": shifted,
                "decoder_target_tokens": targets,
                "decoder_loss_weights": (targets > 0).astype(np.float32),
            }
        )
    return result


def losses(name: str, layout: sharding.Layout, base) -> list[float]:
    """The losses of one method's steps on the layout's mesh."""
    required = [f for f in dataclasses.fields(METHODS[name]) if f.default is dataclasses.MISSING]
    method = METHODS[name](**KWARGS.get(name, {field.name: 2 for field in required}))
    rate = optimizers.factors(base_learning_rate=1e-3)
    plain = method.trains_base
    optimizer = optimizers.per_module(
        optimizers.adafactor(
            rate,
            multiply_by_parameter_scale=plain,
            factored=plain,
            min_dim_size_to_factor=8,
        ),
        method,
    )
    mesh = sharding.make_mesh(layout, jax.devices()[: layout.devices])
    with sharding.on_mesh(mesh):
        adapter = parameters.init_adapter(CONFIG, method, base, jax.random.key(1))
        frozen_dtype = os.environ.get("FROZEN_DTYPE", "float32")
        current = state.create(CONFIG, method, base, adapter, optimizer, mesh, layout, frozen_dtype)
        train_step = step.compiled(
            lambda rate: step.make_train_step(Transformer(CONFIG, method), optimizer, rate),
            current,
            seed=0,
            learning_rate=rate,
        )
        rows = sharding.local_rows(mesh, BATCH_SIZE)
        found = []
        for batch in batches():
            # What this process's devices do not hold, it does not have.
            local = {feature: array[rows] for feature, array in batch.items()}
            placed = sharding.place_batch(local, mesh, BATCH_SIZE)
            current, metrics = train_step(current, placed)
            found.append(float(metrics["loss"]))
    return found


def layout_of(mesh: str) -> sharding.Layout:
    """The layout of a mesh's name."""
    *slices, data, model = map(int, mesh.removesuffix("f").split("x"))
    sizes = (*slices, data, model)
    return sharding.Layout(model, mesh.endswith("f"), math.prod(slices), math.prod(sizes))


def main() -> None:
    """Prints {mesh: {method: losses}}."""
    names = os.environ.get("METHODS", " ".join(NAMES)).split()
    base = jax.device_get(parameters.init_base(CONFIG, jax.random.key(0)))
    print(
        json.dumps(
            {
                mesh: {name: losses(name, layout_of(mesh), base) for name in names}
                for mesh in sys.argv[1:]
            }
        )
    )


if __name__ == "__main__":
    with hosts.joined():
        main()
