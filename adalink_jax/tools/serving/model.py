"""The flags of a base, its adapters and its images, which the commands that serve share."""

import argparse
import os
from typing import Any

from adalink_jax.adapters.texts import opened_vocabulary, vocabulary_of
from adalink_jax.checkpoints import load_image_encoder
from adalink_jax.data.images import check_width
from adalink_jax.errors import UserError
from adalink_jax.models.config import T5Config
from adalink_jax.models.kernels import FROZEN_DTYPES
from adalink_jax.notices import load_tasks
from adalink_jax.runs.setup import check_frozen_dtype
from adalink_jax.tools.serving.engine import BASE, Engine, Precision
from adalink_jax.tools.serving.pictures import Pictures
from adalink_jax.tools.serving.service import Limits, Service
from adalink_jax.tools.serving.shelf import Shelf

_MIB = 2**20


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the base, the adapters, the vocabulary, and what is kept of them in memory."""
    add = parser.add_argument
    add("--base", required=True, help="the base's checkpoint")
    add("--adapters", help="a folder of adapters, or of runs that wrote one, or a packed file")
    about = "T5's SentencePiece file, 'mini' or 'english' (default: the base's own, or VOCABULARY)"
    add("--vocabulary", help=about)
    add("--image_encoder", help="the base's image encoder, for requests with images")
    about = "the folder in which requests may name images by path; without it none may"
    add("--image_folder", help=about)
    add("--resident", type=int, default=64, help="adapters of one kind in memory")
    add("--bank_mib", type=int, default=1024, help="MiB for adapters on the device")
    add("--host_mib", type=int, default=1024, help="MiB for adapters in the host's memory")
    add("--inputs", type=int, default=512, help="maximum tokens of a text")
    add("--targets", type=int, default=16, help="maximum tokens to generate")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the activations")
    add("--frozen_dtype", default="float32", choices=FROZEN_DTYPES, help="of the stored base")
    about = "number of devices that the base is split over"
    add("--model_parallelism", type=int, default=1, help=about)


def opened(flags: argparse.Namespace, limits: Limits, resident: int, programs: int = 64) -> Service:
    """Loads what the flags of `add_model` name.

    Args:
      flags: the parsed flags.
      limits: what the service takes.
      resident: the most adapters of one kind on the device.
      programs: the most compiled programs.

    Raises:
      UserError: the vocabulary, the base, the adapters or the image encoder cannot be used.
    """
    load_tasks()
    import tasks

    vocabulary = _vocabulary(flags)  # Opened here, so that an error is not blamed on a request.
    check_frozen_dtype(flags.frozen_dtype, BASE)
    precision = Precision(flags.dtype, flags.frozen_dtype, flags.model_parallelism)
    sizes = {"resident": resident, "bank_bytes": flags.bank_mib * _MIB, "programs": programs}
    engine = Engine(flags.base, precision, **sizes)
    pictures = _pictures(flags, engine.config)
    shelf = Shelf(
        flags.adapters, engine.config, engine.fingerprint, vocabulary, tasks.LABELS,
        most_bytes=flags.host_mib * _MIB,
        length=limits.inputs + (pictures.shape[0] if pictures else 0),
    )  # fmt: skip
    return Service(engine, shelf, vocabulary, limits, pictures)


def _vocabulary(flags: argparse.Namespace) -> Any:
    import tasks

    if flags.vocabulary:
        return opened_vocabulary(flags.vocabulary)
    found = vocabulary_of(flags.base)
    if type(found) is not tasks.UserVocabulary:
        return found
    if not (path := os.environ.get("VOCABULARY")):
        raise UserError(
            "no vocabulary: give T5's SentencePiece file by --vocabulary, or set VOCABULARY; "
            "docs/howto/files.md says where to get it"
        )
    return opened_vocabulary(path)


def _pictures(flags: argparse.Namespace, config: T5Config) -> Pictures | None:
    if flags.image_encoder is None:
        if flags.image_folder is not None:
            raise UserError("--image_folder is set, but --image_encoder is not")
        return None
    encoder = load_image_encoder(flags.image_encoder)
    check_width(encoder, config.image_width, "--image_encoder")
    return Pictures(encoder, flags.image_folder)
