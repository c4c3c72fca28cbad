"""Exports the network with a method as portable programs that need only jax to run.

The programs take base and adapter as arguments: flat dicts of arrays under their ``"/"``-joined
names, as in the safetensors files. They hold no weights, so one export serves every adapter with
the same method and settings. Batch size and lengths are symbolic.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util
from jax import export

from adalink_jax.checkpoints.architecture import describe_architecture, shapes_of
from adalink_jax.files import new_folder
from adalink_jax.methods.base import Array, Method, merge, split
from adalink_jax.models import decoding
from adalink_jax.models.inputs import IMAGES, EncoderInputs, to_decode
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.t5 import T5Config, Transformer

PLATFORMS = ("cpu", "cuda", "tpu")
SIGNATURE = "signature.json"

Flat = Mapping[str, Array]

# Those of a base that takes images, after the others.
_IMAGES = ("images", "image_mask")
_ARGUMENTS = {
    "images": ("b, m, v", "vectors that an image encoder gives of a row's pictures"),
    "image_mask": ("b, m", "1 where such a vector is real, 0 on padding"),
    "inputs": ("b, t", "token ids, 0 on padding"),
    "routes": ("b", "which of the adapter's modules adapts a row; 0 where it has one"),
    "options": ("c, l", "the options' token ids with EOS, 0 on padding"),
    "blank": ("l", "zeros; its length is how many tokens are generated at most"),
}


def programs(config: T5Config, method: Method) -> dict[str, tuple[Callable[..., Array], list[str]]]:
    """Returns each exported function by name, with the names of its arguments after the trees.

    Args:
      config: the base's architecture.
      method: the adapter's method.

    Returns:
      * encode(base, adapter, inputs, routes) → the encoded sequence [b, P+t, D];
      * score(base, adapter, inputs, routes, options) → log-likelihoods [b, c];
      * greedy(base, adapter, inputs, routes, blank) → token ids [b, l], 0 after EOS; -1 where the
        logits are not finite.

      Those of a base that takes images have images [b, m, v] and image_mask [b, m] after these.
    """
    model = Transformer(config, method)

    def params(base: Flat, adapter: Flat) -> dict[str, Any]:
        trees = (traverse_util.unflatten_dict(dict(flat), sep="/") for flat in (base, adapter))
        return merge(*trees)

    def encode(base: Flat, adapter: Flat, *given: Array) -> Array:
        arguments = EncoderInputs.of(*given).to_encode()
        merged = {"params": params(base, adapter)}
        return model.apply(merged, **arguments, enable_dropout=False, method="encode")

    def score(
        base: Flat, adapter: Flat, inputs: Array, routes: Array, options: Array, *images: Array
    ) -> Array:
        merged = params(base, adapter)
        return decoding.score_options(model, merged, inputs, options, routes, *images)

    def greedy(
        base: Flat, adapter: Flat, inputs: Array, routes: Array, blank: Array, *images: Array
    ) -> Array:
        batch = {"encoder_input_tokens": inputs, "encoder_routes": routes}
        batch |= zip(IMAGES, images, strict=False)
        merged, length = params(base, adapter), blank.shape[0]
        return decoding.greedy(model, merged, max_length=length, **to_decode(batch))

    images = [] if config.image_width is None else list(_IMAGES)
    return {
        "encode": (encode, ["inputs", "routes", *images]),
        "score": (score, ["inputs", "routes", "options", *images]),
        "greedy": (greedy, ["inputs", "routes", "blank", *images]),
    }


def save_programs(
    folder: str | os.PathLike[str],
    config: T5Config,
    method: Method,
    check: Callable[[pathlib.Path], None] = lambda folder: None,
) -> None:
    """Writes ``NAME.stablehlo`` for each of `programs`, and ``signature.json``.

    Args:
      folder: the folder to write; it must not exist.
      config: the base's architecture.
      method: the adapter's method. The programs fit only adapters with exactly these settings.
      check: called with the written folder before it is renamed to its final name. If it raises,
        nothing is left behind.

    Raises:
      UserError: the folder exists or cannot be written.
    """
    whole, _ = abstract_params(config, method)
    adapter, base = (traverse_util.flatten_dict(t, sep="/") for t in split(whole, method))
    signature = {
        "architecture": describe_architecture(config),
        "method": {"name": method.scope, **method.settings()},
        "jax_version": jax.__version__,
        "platforms": PLATFORMS,
        "base": shapes_of(base),
        "adapter": shapes_of(adapter),
        "programs": {},
    }
    sizes = dict(zip("btclm", export.symbolic_shape("b, t, c, l, m"), strict=True))
    sizes["v"] = config.image_width or 0
    with new_folder(folder) as partial:
        for name, (function, names) in programs(config, method).items():
            shapes = [
                tuple(sizes[letter] for letter in _ARGUMENTS[argument][0].split(", "))
                for argument in names
            ]
            arrays = [
                jax.ShapeDtypeStruct(shape, _dtype(argument))
                for argument, shape in zip(names, shapes, strict=True)
            ]
            exported = export.export(jax.jit(function), platforms=PLATFORMS)(base, adapter, *arrays)
            file = f"{name}.stablehlo"
            (partial / file).write_bytes(exported.serialize())
            (result,) = exported.out_avals
            signature["programs"][name] = {
                "file": file,
                "arguments": [
                    {"name": "base", "what": "the arrays of 'base', float32"},
                    {"name": "adapter", "what": "the arrays of 'adapter', float32"},
                    *(_argument(argument) for argument in names),
                ],
                "result": {"dtype": str(result.dtype), "shape": [str(n) for n in result.shape]},
            }
        text = json.dumps(signature, indent=1, sort_keys=True)
        (partial / SIGNATURE).write_text(text + "\n", encoding="utf-8")
        check(partial)


def _argument(name: str) -> dict[str, Any]:
    shape, what = _ARGUMENTS[name]
    return {"name": name, "dtype": _dtype(name), "shape": shape.split(", "), "what": what}


def _dtype(argument: str) -> str:
    return "float32" if argument == "images" else "int32"
