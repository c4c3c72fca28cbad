"""Trains every method on meshes of virtual CPU devices and prints the losses as JSON.

Run as a process of its own: ``mesh_losses.py MESH…``, a mesh being like 4x2, 1x1 one device.
Several processes join by the environment that `adalink_jax.sharding.initialise_processes` reads.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax import sharding
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training import optimizers, state, step

STEPS = 20
KWARGS = {"adalink": {"rank": 2}, "lora": {"rank": 2}, "prompt_tuning": {"length": 2}}
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
        inputs = rng.integers(3, 48, (16, 7)).astype(np.int32)
        targets = rng.integers(3, 48, (16, 4)).astype(np.int32)
        inputs[np.arange(7) >= rng.integers(2, 8, (16, 1))] = 0
        targets[np.arange(4) >= rng.integers(1, 5, (16, 1))] = 0
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


def losses(name: str, mesh: Mesh, base) -> list[float]:
    """The losses of one method's steps on a mesh."""
    method = METHODS[name](**KWARGS.get(name, {}))
    rate = optimizers.factors(base_learning_rate=1e-3)
    plain = method.trains_base
    optimizer = optimizers.per_module(
        optimizers.adafactor(rate, multiply_by_parameter_scale=plain, factored=plain), method
    )
    with sharding.on_mesh(mesh):
        adapter = state.init_adapter(CONFIG, method, base, jax.random.key(1))
        current = state.create(CONFIG, method, base, adapter, optimizer, mesh)
        train_step = jax.jit(
            step.make_train_step(Transformer(CONFIG, method), optimizer, rate),
            donate_argnums=0,
        )
        found = []
        key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
        for batch in batches():
            current, metrics = train_step(current, sharding.place_batch(batch, mesh), key)
            found.append(float(metrics["loss"]))
    return found


def main() -> None:
    """Prints {mesh: {method: losses}}."""
    sharding.initialise_processes()
    base = jax.device_get(state.init_base(CONFIG, jax.random.key(0)))
    result = {}
    for shape in sys.argv[1:]:
        data, model = map(int, shape.split("x"))
        devices = np.asarray(jax.devices()[: data * model]).reshape(data, model)
        mesh = Mesh(devices, ("data", "model"))
        result[shape] = {name: losses(name, mesh, base) for name in METHODS}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
