"""Computes logits on fixed inputs, each time in a new process.

The memory of one framework, or of one copy of a model, is freed before the next one starts, and
training never imports PyTorch.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from adalink_jax.checkpoints import fingerprint, load_base
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import Transformer

_BATCH, _INPUTS, _TARGETS = 2, 24, 8  # Relative positions share buckets beyond 16 tokens.
_IMAGES = 5


def has_transformers() -> bool:
    """Returns whether transformers and PyTorch are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def fixed_inputs(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns encoder tokens [2, 24], with padding in the second row, and decoder tokens [2, 8]."""
    generator = np.random.default_rng(0)
    inputs = generator.integers(1, vocab_size, (_BATCH, _INPUTS)).astype(np.int32)
    inputs[1, _INPUTS * 2 // 3 :] = 0
    return inputs, generator.integers(1, vocab_size, (_BATCH, _TARGETS)).astype(np.int32)


def fixed_images(image_width: int | None) -> dict[str, np.ndarray]:
    """Returns encoder_images [2, 5, Dv] and their mask, with padding in the second row.

    Nothing for a base that reads text alone.
    """
    if image_width is None:
        return {}
    images = np.random.default_rng(1).normal(size=(_BATCH, _IMAGES, image_width))
    mask = np.ones((_BATCH, _IMAGES), np.int32)
    mask[1, _IMAGES // 2 :] = 0
    return {"encoder_images": images.astype(np.float32), "encoder_image_mask": mask}


def base_logits(path: str, images: bool = True) -> tuple[np.ndarray, str]:
    """Loads a base; returns its float32 logits [2, 8, V] on the fixed inputs and its fingerprint.

    Args:
      path: the base.
      images: whether the fixed images are among the inputs, if it takes some.

    Raises:
      UserError: the base cannot be loaded.
    """
    config, params = load_base(path)
    inputs, targets = fixed_inputs(config.vocab_size)
    model = Transformer(config)
    given = fixed_images(config.image_width if images else None)
    logits = model.apply(
        {"params": params}, inputs, targets, targets, **given, enable_dropout=False
    )
    return np.asarray(logits, np.float32), fingerprint(params)


def transformers_logits(path: str) -> np.ndarray:
    """Loads a Hugging Face folder with transformers; returns its float32 logits [2, 8, V].

    BLIP-2 gets the fixed images in place of what its image encoder gives.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    if config.model_type != "blip-2":
        kind = transformers.AutoModelForSeq2SeqLM
        model = kind.from_pretrained(path, dtype=torch.float32).eval()
        inputs, targets = (torch.tensor(a).long() for a in fixed_inputs(config.vocab_size))
        given = {"input_ids": inputs, "attention_mask": (inputs > 0).long()}
    else:
        kind = transformers.Blip2ForConditionalGeneration
        whole = kind.from_pretrained(path, dtype=torch.float32).eval()
        model, project = whole.language_model, whole.language_projection
        inputs, targets = (torch.tensor(a).long() for a in fixed_inputs(model.config.vocab_size))
        images, mask = map(torch.tensor, fixed_images(project.in_features).values())
        embedded = [project(images), model.get_input_embeddings()(inputs)]
        seen = torch.cat([mask, inputs > 0], 1).long()
        given = {"inputs_embeds": torch.cat(embedded, 1), "attention_mask": seen}
    with torch.no_grad():
        return model(**given, decoder_input_ids=targets).logits.float().numpy()


def logits_of(
    path: str | os.PathLike[str], framework: str, images: bool = True
) -> tuple[np.ndarray, str]:
    """Computes the logits of a model in a new process.

    Args:
      path: a base in any format, or a Hugging Face folder for "transformers".
      framework: "adalink_jax" or "transformers".
      images: as of `base_logits`.

    Returns:
      The logits [2, 8, V] and the base's fingerprint ("" for transformers).

    Raises:
      UserError: the model cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "logits.npz"
        # Lets the process import this package from the same place, installed or not.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-m", __name__, framework, os.fspath(path), answer, str(int(images))],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(f"{path} cannot be loaded by {framework}: {reason}")
        with np.load(answer) as arrays:
            return arrays["logits"], str(arrays["fingerprint"])


def _main(framework: str, path: str, answer: str, images: str) -> None:
    try:
        ours = framework == "adalink_jax"
        result = base_logits(path, images == "1") if ours else (transformers_logits(path), "")
    except UserError as error:
        sys.exit(f"error: {error}")
    np.savez(answer, logits=result[0], fingerprint=result[1])


if __name__ == "__main__":
    _main(*sys.argv[1:])
