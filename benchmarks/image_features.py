"""Time of a training step with stored image features, and with the image encoder in it.

AdaLink by modality on FLAN-T5 base's shape behind a ViT-B/16 of 224 pixels (196 patches and a class
token), random weights, float32. A batch has pictures of its own, with 32 tokens in and 16 out:

* stored: the features are read from the cache (`Images.stored = True`), and the step runs;
* encoder: every picture is read from its PNG, prepared and encoded (`Images.stored = False`), and
  the step runs.

Both make the same batch, to the byte. "x stored" is the median of ratios within a round; the line
above the table has its bounds. "of encoder's" is the part of the step with the encoder that is the
step itself, so that is what is left of it at best.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.checkpoints import image_encoder  # noqa: E402
from adalink_jax.data.images import Pictures  # noqa: E402
from adalink_jax.distributed.sharding import make_mesh, on_mesh, place_batch  # noqa: E402
from adalink_jax.methods import METHODS  # noqa: E402
from adalink_jax.methods.base import Method  # noqa: E402
from adalink_jax.models import parameters  # noqa: E402
from adalink_jax.models.t5 import T5Config  # noqa: E402
from adalink_jax.models.vision.encoder import ImageEncoder  # noqa: E402
from adalink_jax.models.vision.preprocessing import Preprocessing  # noqa: E402
from adalink_jax.models.vision.vit import ViT, ViTConfig  # noqa: E402
from adalink_jax.training import state as states  # noqa: E402
from benchmarks import matrix_products, shapes, timing, train_step  # noqa: E402

INPUTS, TARGETS = 32, 16


def encoder_of(config: ViTConfig) -> ImageEncoder:
    """Returns an image encoder with random weights."""
    size = config.image_size
    network = ViT(config)
    params = network.init(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))["params"]
    return image_encoder(network, params, Preprocessing(height=size, width=size))


def photographs(folder: pathlib.Path, count: int, rng: np.random.Generator) -> list[str]:
    """Writes pictures of 640 x 480 pixels, and returns their keys."""
    for number in range(count):
        coarse = rng.integers(0, 256, (15, 20, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def candidates(
    encoder: ImageEncoder, config: T5Config, batch_size: int, folder: pathlib.Path
) -> dict[str, Callable[[], None]]:
    """Returns the step alone, with stored features, and with the encoder in it."""
    mesh, shape = make_mesh(), matrix_products.Shape(batch_size, INPUTS, TARGETS)
    text = train_step.make_batch(config.vocab_size, shape)
    keys = photographs(folder, batch_size, np.random.default_rng(0))
    base = parameters.init_base(config, jax.random.key(0))
    base = states.place_params(config, Method(), base, mesh)
    method = METHODS["adalink"](**{"rank": 4, "by_modality": True})
    rows, found = np.arange(batch_size), {}
    for name, stored in (("stored", True), ("encoder", False)):
        given = {"stored": stored, "batch_size": batch_size, "cache_dir": folder / "cache"}
        pictures = Pictures(encoder, folder, **given)
        features = pictures.features(pictures.digests(keys))
        found[name] = lambda features=features: features.batch(rows, rows, batch_size)
    for name, array in found["stored"]().items():
        np.testing.assert_array_equal(found["encoder"]()[name], array)
    placed = place_batch({**text, **found["stored"]()}, mesh)
    step = train_step.method_step(config, method, base, placed, mesh)

    def run(images: Callable[[], dict[str, np.ndarray]]) -> None:
        place_batch(images(), mesh)
        step()

    return {"step": step, **{name: lambda made=made: run(made) for name, made in found.items()}}


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = timing.parser(__doc__, rounds=12)
    flags.add_argument("--batch", type=int, default=8, help="pictures of a batch")
    options = flags.parse_args(arguments)
    vit = ViTConfig(768, 12, 12, 3072, patch_size=16, image_size=224, class_token="kept")
    if options.small:
        vit = ViTConfig(16, 1, 2, 24, patch_size=8, image_size=16, class_token="kept")
    text, load = shapes.toy(0.1) if options.small else shapes.t5_1_1("base", 0.1), os.getloadavg()
    config = dataclasses.replace(text, image_width=vit.width)
    with tempfile.TemporaryDirectory() as folder, on_mesh(make_mesh()):
        steps = candidates(encoder_of(vit), config, options.batch, pathlib.Path(folder))
        wall, cpu = timing.interleaved(steps, options.rounds)
    bounds = {}
    for clock, times in (("wall", wall), ("CPU", cpu)):
        bounds[clock] = timing.median_with_bounds(times, "encoder", "stored")
        print(
            f"encoder / stored, {clock} time: {bounds[clock]['median']:.3f} "
            f"({bounds[clock]['low']:.3f} to {bounds[clock]['high']:.3f})"
        )
    table = [
        {
            "batch": name,
            "seconds": statistics.median(wall[name]),
            "CPU seconds": statistics.median(cpu[name]),
            "x stored": timing.ratio(wall, name, "stored"),
            "of encoder's": timing.ratio(wall, name, "encoder"),
        }
        for name in steps
    ]
    settings = {"batch": options.batch, "inputs": INPUTS, "targets": TARGETS}
    settings["image tokens"] = (vit.image_size // vit.patch_size) ** 2 + 1
    settings |= {"rounds": options.rounds, "platform": jax.default_backend()}
    timing.report(
        "image_features", table, settings, (wall, cpu), load, options.out, against_stored=bounds
    )


if __name__ == "__main__":
    main(sys.argv[1:])
