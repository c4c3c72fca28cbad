"""Trains the two bases of the image world, with their image encoder, from random weights.

adalink pretrain-images runs/image_bases

There are three stages: the image encoder, a ViT, learns to name what each patch shows; ViT and T5
are trained together on `mini_image_raw`, which gives the raw base; T5 alone goes on with
`mini_image_instructions`, which gives the tuned base of the same encoder. OUT/encoder, OUT/raw and
OUT/tuned hold them in bfloat16, and OUT/log.jsonl has a line of losses for each saved step. A stage
that was stopped goes on from its last saved step. What comes with the package was made so.

Pictures and texts are drawn once, into OUT/examples. With --draw_only the command stops then: the
rest needs JAX, but no TensorFlow, so OUT can be taken to a machine with a GPU.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.checkpoints.encoders import (
    image_encoder,
    load_image_encoder,
    save_image_encoder,
)
from adalink_jax.checkpoints.fingerprint import fingerprint
from adalink_jax.errors import UserError
from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.models.vision.preprocessing import Preprocessing
from adalink_jax.models.vision.vit import ViT, ViTConfig
from adalink_jax.tools import stages
from adalink_jax.tools.image_bases import examples as image_examples
from adalink_jax.training.losses import cross_entropy

VISION = ViTConfig(width=128, depth=3, num_heads=4, mlp_dim=256, patch_size=8, image_size=32)
TEXT = T5Config(
    vocab_size=256,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=2,
    head_dim=32,
    mlp_dim=256,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
    image_width=128,
)
PREPROCESSING = Preprocessing(height=VISION.image_size, width=VISION.image_size)
_WARMUP, _DECAY = 200, 0.25  # Steps at the start, and the share of steps at the end.
_SAVED_EVERY = 60.0  # Seconds.
_EXAMPLES = "examples"  # The folder of examples in OUT.
_AT_ONCE = 20  # Steps that a device takes without waiting for the host.


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
      name: its name.
      mixture: what it is trained on.
      steps: number of steps.
      batch_size: examples of a step.
      rate: Adam's learning rate after the warm-up; it falls to 0 in the last steps.
      trains: the trees that it trains, of "vision", "names" (the patches' classifier) and "text".
    """

    name: str
    mixture: str
    steps: int
    batch_size: int
    rate: float
    trains: tuple[str, ...]


STAGES = (
    Stage("encoder", "mini_image_raw", 2000, 128, 1e-3, ("vision", "names")),
    Stage("raw", "mini_image_raw", 3000, 128, 1e-3, ("vision", "text")),
    Stage("tuned", "mini_image_instructions", 1000, 128, 5e-4, ("text",)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder and the numbers of steps."""
    parser.add_argument("out", metavar="OUT", help="the folder of encoder and bases")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    for stage in STAGES:
        flag = f"--{stage.name}_steps"
        parser.add_argument(flag, type=int, default=stage.steps, help=f"steps of {stage.name}")
    only = "draw the examples into OUT and stop; the rest needs no TensorFlow"
    parser.add_argument("--draw_only", action="store_true", help=only)


def run(arguments: argparse.Namespace) -> None:
    """Trains all stages that are not finished, and writes encoder and bases.

    Raises:
      UserError: a number of steps is below 1, or less than a stage has already; a state is damaged;
        or what is there comes from another training.
    """
    out = pathlib.Path(arguments.out)
    steps = {stage.name: getattr(arguments, f"{stage.name}_steps") for stage in STAGES}
    for name, count in steps.items():
        if count < 1:
            raise UserError(f"--{name}_steps is {count}; expected 1 or more")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; expected 0 or more")
    if arguments.draw_only:
        for mixture in {stage.mixture for stage in STAGES}:
            for split in ("train", "validation"):
                image_examples.load(mixture, split, out / _EXAMPLES)
        return
    params = _initial(arguments.seed, out)
    for stage in STAGES:
        stage = dataclasses.replace(stage, steps=steps[stage.name])
        params = _trained(stage, params, out, arguments.seed)
        if stage.name == "raw":
            _write_encoder(out / "encoder", params["vision"])
        if "text" in stage.trains:
            _write_base(out, params["text"], stage, arguments.seed)


def _write_encoder(folder: pathlib.Path, params: Any) -> None:
    encoder = image_encoder(ViT(VISION), stages.rounded(params), PREPROCESSING)
    if not folder.exists():
        save_image_encoder(folder, encoder, halved=True)
    elif load_image_encoder(folder).fingerprint != encoder.fingerprint:
        raise UserError(f"{folder} holds the encoder of another training; remove it")


def _write_base(out: pathlib.Path, params: Any, stage: Stage, seed: int) -> None:
    examples = image_examples.load(stage.mixture, "validation", out / _EXAMPLES)
    data = {"name": stage.mixture, "vocabulary": examples.vocabulary}
    about = {"train_steps": stage.steps, "seed": seed, "data": data}
    stages.write_base(out / stage.name, params, TEXT, about)


def _initial(seed: int, out: pathlib.Path) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 3)
    pixels = jnp.zeros((1, VISION.image_size, VISION.image_size, 3))
    names = jax.nn.initializers.lecun_normal()
    width = sum(image_examples.load(STAGES[0].mixture, "validation", out / _EXAMPLES).classes)
    return {
        "vision": jax.jit(ViT(VISION).init)(keys[0], pixels)["params"],
        "names": {"kernel": names(keys[1], (VISION.width, width))},
        "text": init_base(TEXT, keys[2]),
    }


def patch_loss(
    params: Mapping[str, Any], batch: Mapping[str, Any], classes: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Computes how badly the encoder's tokens name what their patches show, and where they are.

    Args:
      params: "vision" and "names".
      batch: see `image_examples.Examples`.
      classes: number of classes of things, of colors and of places.

    Returns:
      The mean cross-entropy, and by example the share of patches whose thing is right.
    """
    labels = batch["labels"]
    logits = _tokens(params, batch["pixels"]) @ params["names"]["kernel"]
    total, right = jnp.zeros(()), []
    ends = np.cumsum(classes)[:-1]
    for i, part in enumerate(jnp.split(logits, ends, axis=-1)):
        known = (labels[:, i] >= 0).astype(jnp.float32)
        targets = jnp.maximum(labels[:, i], 0)
        loss, _ = cross_entropy(part, targets, known)
        total += loss / jnp.maximum(known.sum(), 1)
        right.append(jnp.mean(part.argmax(-1) == targets, axis=-1))
    return total, right[0]


def text_loss(params: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Computes the loss of the targets.

    Args:
      params: "vision" and "text".
      batch: see `image_examples.Examples`.

    Returns:
      The mean cross-entropy of a token, and by example whether all tokens are the likeliest, which
      is whether greedy decoding gives the target.
    """
    images = _tokens(params, batch["pixels"])
    targets = batch["targets"]
    logits = Transformer(TEXT).apply(
        {"params": params["text"]},
        batch["inputs"],
        jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
        targets,
        encoder_images=images,
        encoder_image_mask=jnp.broadcast_to(batch["seen"][:, None], images.shape[:2]),
        enable_dropout=False,
    )
    weights = (targets > 0).astype(jnp.float32)
    loss, _ = cross_entropy(logits, targets, weights, z_loss=1e-4)
    right = (logits.argmax(-1) == targets) | (targets == 0)
    return loss / weights.sum(), jnp.all(right, axis=-1)


def _tokens(params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
    """Returns the encoder's tokens of pictures, which have their size already."""
    scaled = (pixels.astype(jnp.float32) / 255 - 0.5) / 0.5  # As `PREPROCESSING` does.
    return jnp.asarray(ViT(VISION).apply({"params": params["vision"]}, scaled))


def _optimizer(stage: Stage) -> optax.GradientTransformation:
    decay = max(1, int(stage.steps * _DECAY))
    falls = optax.linear_schedule(stage.rate, 0.0, decay, stage.steps - decay)

    def rate(step):
        return jnp.minimum(stage.rate * (step + 1) / _WARMUP, falls(step))

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


def _trained(stage: Stage, params: dict[str, Any], out: pathlib.Path, seed: int) -> dict[str, Any]:
    """Trains a stage from its last saved step, or from the end of the stage before it."""
    optimizer = _optimizer(stage)
    frozen = {name: tree for name, tree in params.items() if name not in stage.trains}
    trainable = {name: params[name] for name in stage.trains}
    path, begun = out / f"{stage.name}.state.safetensors", fingerprint(params)
    given = trainable, jax.jit(optimizer.init)(trainable)
    done, trainable, state = stages.restored(path, begun, *given)
    step = int(done.get("step", 0))
    if step > stage.steps:
        raise UserError(f"{path} has {step} steps, but --{stage.name}_steps is {stage.steps}")
    if step == stage.steps:
        return frozen | trainable
    examples = image_examples.load(stage.mixture, "train", out / _EXAMPLES)
    loss_of = text_loss
    if stage.name == "encoder":
        loss_of = functools.partial(patch_loss, classes=examples.classes)
    validate = _validation(loss_of, stage, out)
    update = _steps(loss_of, optimizer, examples.noise)
    arrays, noises = jax.device_put(examples.arrays), jax.random.key(seed)
    saved, losses = time.monotonic(), []
    while step < stage.steps:
        at_once = range(step, min(stage.steps, step + _AT_ONCE))
        rows = [
            examples.rows(stage.batch_size, np.random.default_rng((seed, one))) for one in at_once
        ]
        batches = np.array(at_once), np.stack(rows)
        trainable, state, found = update(trainable, state, frozen, arrays, noises, batches)
        losses.append(np.asarray(found))
        step = at_once.stop
        if step == stage.steps or time.monotonic() - saved > _SAVED_EVERY:
            stages.save(path, begun, {"step": step}, trainable, state)
            taken = np.concatenate(losses)
            pace = (time.monotonic() - saved) / len(taken)
            _tell(out, stage, step, pace, taken, validate(frozen | trainable))
            saved, losses = time.monotonic(), []
    return frozen | trainable


def _steps(loss_of: Callable, optimizer: optax.GradientTransformation, noise: int) -> Callable:
    """Returns a function that takes several steps on a device.

    Its arguments are the trained parameters and the optimizer's state, which it returns with the
    losses; the frozen parameters; the arrays of `image_examples.Examples`; the key of all noise;
    and the numbers of the steps, int [K], with the rows of their batches, int32 [K, B].
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(trainable, state, frozen, arrays, noises, batches):
        def step(carry, batch):
            trainable, state = carry
            number, rows = batch
            batch = {name: array[rows] for name, array in arrays.items()}
            key = jax.random.fold_in(noises, number)
            added = jax.random.randint(key, batch["pixels"].shape, -noise, noise + 1)
            batch["pixels"] = jnp.clip(batch["pixels"] + added, 0, 255)

            def loss(trainable):
                return loss_of(frozen | trainable, batch)[0]

            value, gradients = jax.value_and_grad(loss)(trainable)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(trainable, updates), state), value

        (trainable, state), losses = jax.lax.scan(step, (trainable, state), batches)
        return trainable, state, losses

    return update


def _validation(
    loss_of: Callable, stage: Stage, out: pathlib.Path
) -> Callable[[Any], dict[str, Any]]:
    """Returns a function from parameters to numbers on examples that are not trained on."""
    examples = image_examples.load(stage.mixture, "validation", out / _EXAMPLES)
    arrays, compiled = jax.device_put(examples.arrays), jax.jit(loss_of)

    def validate(params) -> dict[str, Any]:
        loss, right = compiled(params, arrays)
        right = np.asarray(right)
        shares = {
            name.removeprefix("mini_image_"): float(right[examples.arrays["task"] == i].mean())
            for i, name in enumerate(examples.tasks)
        }
        found = {"held_out": float(loss), "right": shares}
        if "text" in stage.trains:
            hidden = arrays | {"seen": jnp.zeros_like(arrays["seen"])}
            found["without_pictures"] = float(compiled(params, hidden)[0])
        return found

    return validate


def _tell(
    out: pathlib.Path,
    stage: Stage,
    step: int,
    pace: float,
    losses: np.ndarray,
    validated: Mapping[str, Any],
) -> None:
    """Prints how far a stage is, and adds it to the log.

    Args:
      out: the folder of the log.
      stage: the stage.
      step: number of steps done.
      pace: seconds a step.
      losses: of the steps since the last time.
      validated: see `_validation`.
    """
    right = ", ".join(f"{name} {share:.1%}" for name, share in validated["right"].items())
    numbers = f"loss {losses.mean():.3f}, held out {validated['held_out']:.3f}"
    if "without_pictures" in validated:
        numbers += f", without pictures {validated['without_pictures']:.3f}"
    done = f"{stage.name} {step}/{stage.steps}: {pace:.4f} s a step"
    print(f"{done}, {numbers}; right: {right}", flush=True)
    about = {"stage": stage.name, "step": step, "seconds_a_step": pace}
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(about | {"loss": float(losses.mean()), **validated}) + "\n")
