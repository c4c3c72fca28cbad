"""Evaluates on meshes of virtual CPU devices and prints what was found as JSON.

Run as a process of its own: ``mesh_evaluation.py MESH…``, a mesh being like 4x2, 1x1 one device.
Several processes join by the environment that `adalink_jax.distributed.hosts.joined` reads.
"""

import json
import os
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax.distributed import hosts
from adalink_jax.evaluation import MODES, Evaluator
from adalink_jax.methods import AdaLink
from adalink_jax.models import parameters
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training import state

LENGTHS = {"inputs": 24, "targets": 8}
# The byte vocabulary's 259 tokens, in a table that four devices can share.
CONFIG = T5Config(
    vocab_size=264,
    emb_dim=16,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
)
METHOD = AdaLink(rank=2, routes=2, stacks=("encoder", "decoder"))


def register() -> None:
    """Adds the task `mesh_known`: 19 examples, which fill two batches and a part of one."""
    import seqio
    import tensorflow as tf

    import tasks

    def dataset(split, shuffle_files, seed=None):
        inputs = [f"{i} " + "word " * (i % 5) for i in range(19)]
        targets = [("no", "yes", "perhaps")[i % 3] for i in range(19)]
        return tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})

    tasks.add_classification(
        "mesh_known",
        seqio.FunctionDataSource(dataset, splits=("validation",)),
        None,
        ("no", "yes", "perhaps"),
        [tasks.metrics.accuracy],
        vocabulary=seqio.ByteVocabulary(),
    )


def random_params() -> dict:
    """Random parameters, far from uniform, the same in every process."""
    shapes, _ = parameters.abstract_params(CONFIG, METHOD)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def found(mode: str, mesh: Mesh, params) -> dict:
    """Metrics and predictions of one mode on a mesh."""
    evaluator = Evaluator(
        Transformer(CONFIG, METHOD),
        ("mesh_known",),
        lengths=LENGTHS,
        batch_size=8,
        mode=mode,
        routes={"mesh_known": 1},
        mesh=mesh,
    )
    results = evaluator(state.place_params(CONFIG, METHOD, params, mesh))
    split = results.tasks["mesh_known"].splits["validation"]
    return {
        "metrics": split.metrics,
        "predictions": [p.prediction for p in split.predictions],
        "scores": [list((p.scores or {}).values()) for p in split.predictions],
    }


def main() -> None:
    """Prints {mesh: {mode: what was found}}."""
    register()
    params = random_params()
    result = {}
    modes = os.environ.get("MODES", " ".join(MODES)).split()
    for shape in sys.argv[1:]:
        data, model = map(int, shape.split("x"))
        devices = np.asarray(jax.devices()[: data * model]).reshape(data, model)
        mesh = Mesh(devices, ("data", "model"))
        result[shape] = {mode: found(mode, mesh, params) for mode in modes}
    print(json.dumps(result))


if __name__ == "__main__":
    with hosts.joined():
        main()
