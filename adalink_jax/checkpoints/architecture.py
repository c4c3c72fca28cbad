"""Infers a T5's architecture from the names and shapes of its arrays, and checks them strictly.

Names are those of T5X's minimal T5 (``t5x/examples/t5/network.py``), joined by ``"/"``. Nothing
here reads array contents, so all of it also works on shapes from a checkpoint's index.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util

from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

Shapes = Mapping[str, tuple[int, ...]]

# The fields that determine which arrays a T5 has and what they mean. Precision and dropout do not.
FIELDS = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "head_dim",
    "mlp_dim",
    "mlp_activations",
    "logits_via_embedding",
    "separate_encoder_embedding",
    "relpos_bias_per_layer",
)

# The fields of a base with images, which its arrays have an input for. Others do not record them.
IMAGE_FIELDS = ("image_width", "image_positions")

_FLAGS = ("logits_via_embedding", "separate_encoder_embedding", "relpos_bias_per_layer")

# T5X always uses 32 buckets of relative positions; its config has no field for it.
RELATIVE_POSITION_BUCKETS = 32

_PROJECTION = "encoder/image_projection/kernel"

_LISTED = 3
_LARGEST = 2**31  # Of a size or a count in a record.


def describe_architecture(config: T5Config) -> dict[str, Any]:
    """Returns the fields of `config` that determine its arrays, as JSON values.

    Args:
      config: a T5's configuration.

    Returns:
      ``{field: value}`` for every name in `FIELDS`, and in `IMAGE_FIELDS` if the base takes images;
      ``mlp_activations`` is a list of strings.
    """
    names = FIELDS if config.image_width is None else FIELDS + IMAGE_FIELDS
    values = {name: getattr(config, name) for name in names}
    values["mlp_activations"] = list(values["mlp_activations"])
    return values


def config_from(described: Any, where: str) -> T5Config:
    """Returns the configuration from the output of `describe_architecture`.

    Args:
      described: a value read from JSON, of any type.
      where: the file it was read from, for the error.

    Returns:
      The T5Config, with T5Config's defaults for fields that are not part of the architecture.

    Raises:
      UserError: `described` is not a mapping, or a field is missing, unknown or of a wrong type.
    """
    if not isinstance(described, Mapping):
        raise UserError(f"{where}: 'architecture' is no object of fields")
    missing = [name for name in FIELDS if name not in described]
    unknown = [name for name in described if name not in FIELDS + IMAGE_FIELDS]
    if missing or unknown:
        parts = _listed("missing", missing) + _listed("unknown", unknown)
        raise UserError(f"{where}: architecture fields {'; '.join(parts)}")
    values = dict(described)
    for name, value in values.items():
        if not _valid_field(name, value):
            raise UserError(f"{where}: architecture field {name} is {value!r}")
    values["mlp_activations"] = tuple(values["mlp_activations"])
    try:
        return T5Config(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _valid_field(name: str, value: Any) -> bool:
    if name == "mlp_activations":
        strings = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        return strings and len(value) > 0
    if name in _FLAGS:
        return isinstance(value, bool)
    if name == "image_positions":
        return isinstance(value, str)
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST


def shapes_of(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns ``{"a/b/c": shape}`` for nested dicts of arrays or ``jax.ShapeDtypeStruct``."""
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def infer_config(
    shapes: Shapes,
    where: str = "parameters",
    activations: Sequence[str] | None = None,
    image_positions: str = "joint",
) -> T5Config:
    """Returns the T5 whose parameters have these names and shapes.

    The arrays show how many input layers an MLP has (``wi``, or ``wi_0``, ``wi_1``, …), but not
    which functions follow them. Unless `activations` is given, the published ones are assumed:
    ReLU for one (T5 1.0, Raffel et al. 2020), gated GELU for two (T5 1.1, Shazeer 2020).

    Args:
      shapes: the shapes of exactly the T5's parameters, by their ``"/"``-joined T5X names.
      where: the path the arrays come from, for errors.
      activations: the functions, if known from elsewhere.
      image_positions: as in `T5Config`, which arrays do not show; only of a base with images.

    Returns:
      The configuration, with T5Config's defaults for what arrays do not show (dropout, dtypes).

    Raises:
      UserError: the arrays are not those of exactly one T5; one line with what is missing,
        unexpected, or of another shape.
    """
    vocab_size, emb_dim = _shape(shapes, "token_embedder/embedding", 2, where)
    per_layer = "encoder/layers_0/relpos_bias/rel_embedding" in shapes
    table = f"encoder/{'layers_0/' * per_layer}relpos_bias/rel_embedding"
    num_heads = _shape(shapes, table, 2, where)[0]
    joined_dim = _shape(shapes, "encoder/layers_0/attention/query/kernel", 2, where)[1]
    if num_heads == 0 or joined_dim % num_heads:
        raise UserError(
            f"{where}: encoder/layers_0/attention/query/kernel has {joined_dim} columns, which"
            f" {num_heads} heads ({table}) do not divide"
        )
    gated = "encoder/layers_0/mlp/wi/kernel" not in shapes
    first_input = "encoder/layers_0/mlp/wi_0/kernel" if gated else "encoder/layers_0/mlp/wi/kernel"
    published = ("gelu", "linear") if gated else ("relu",)
    if activations is None or len(activations) != len(published):
        activations = published
    images = {}
    if _PROJECTION in shapes:
        images["image_width"] = _shape(shapes, _PROJECTION, 2, where)[0]
        images["image_positions"] = image_positions
    config = T5Config(
        **images,
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=_count_layers(shapes, "encoder", where),
        num_decoder_layers=_count_layers(shapes, "decoder", where),
        head_dim=joined_dim // num_heads,
        mlp_dim=_shape(shapes, first_input, 2, where)[1],
        mlp_activations=tuple(activations),
        logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
        separate_encoder_embedding="encoder/token_embedder/embedding" in shapes,
        relpos_bias_per_layer=per_layer,
    )
    check_shapes(expected_shapes(config), shapes, where)
    return config


def _shape(shapes: Shapes, name: str, rank: int, where: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"{where}: no array {name}, which every T5 has")
    if len(shapes[name]) != rank:
        raise UserError(f"{where}: {name} has shape {list(shapes[name])}, expected {rank} axes")
    return shapes[name]


def _count_layers(shapes: Shapes, stack: str, where: str) -> int:
    pattern = re.compile(rf"{stack}/layers_(\d{{1,9}})/")
    numbers = {int(match[1]) for match in map(pattern.match, shapes) if match}
    if not numbers:
        raise UserError(f"{where}: no array {stack}/layers_0/…, which every T5 has")
    # If the numbers have a gap, `check_shapes` reports the missing and the extra layers.
    return len(numbers)


def expected_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Returns name and shape of every parameter of a T5, computed from its configuration only.

    The formula does not use the network's code, so each can be tested against the other. With
    model width D, N heads, head width K, MLP width F and vocabulary size V:

    * ``token_embedder/embedding`` [V, D]; ``STACK/relpos_bias/rel_embedding`` [N, 32], or one such
      table in each layer
    * attention: query, key, value kernels [D, N·K], out [N·K, D]
    * MLP: ``wi`` or ``wi_0, wi_1, …`` [D, F], ``wo`` [F, D]; layer norms [D]
    * ``decoder/logits_dense/kernel`` [D, V] unless the output layer is the embedding
    * ``encoder/token_embedder/embedding`` [V, D] if the encoder has its own table
    * ``encoder/image_projection/kernel`` [Dv, D] and its ``bias`` [D] if the base takes images.

    Source of the names: t5x/examples/t5/network.py and layers.py.
    """
    d, joined = config.emb_dim, config.num_heads * config.head_dim
    attention = {f"{name}/kernel": (d, joined) for name in ("query", "key", "value")}
    attention["out/kernel"] = (joined, d)
    count = len(config.mlp_activations)
    inputs = ["wi"] if count == 1 else [f"wi_{i}" for i in range(count)]
    mlp = {f"{name}/kernel": (d, config.mlp_dim) for name in inputs}
    mlp["wo/kernel"] = (config.mlp_dim, d)
    norm = {"scale": (d,)}
    layer = {
        "encoder": {
            "pre_attention_layer_norm": norm,
            "attention": attention,
            "pre_mlp_layer_norm": norm,
            "mlp": mlp,
        },
        "decoder": {
            "pre_self_attention_layer_norm": norm,
            "self_attention": attention,
            "pre_cross_attention_layer_norm": norm,
            "encoder_decoder_attention": attention,
            "pre_mlp_layer_norm": norm,
            "mlp": mlp,
        },
    }
    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    shapes: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (config.vocab_size, d)}
    for stack, parts in layer.items():
        biases = {"relpos_bias/rel_embedding": (config.num_heads, RELATIVE_POSITION_BUCKETS)}
        if config.relpos_bias_per_layer:
            parts["relpos_bias"] = {"rel_embedding": biases.popitem()[1]}
        shapes |= {f"{stack}/{name}": shape for name, shape in biases.items()}
        shapes[f"{stack}/{stack}_norm/scale"] = (d,)
        for i in range(layers[stack]):
            for part, arrays in parts.items():
                for name, shape in arrays.items():
                    shapes[f"{stack}/layers_{i}/{part}/{name}"] = shape
    if not config.logits_via_embedding:
        shapes["decoder/logits_dense/kernel"] = (d, config.vocab_size)
    if config.separate_encoder_embedding:
        shapes["encoder/token_embedder/embedding"] = (config.vocab_size, d)
    if config.image_width is not None:
        shapes[_PROJECTION] = (config.image_width, d)
        shapes["encoder/image_projection/bias"] = (d,)
    return shapes


def check_shapes(expected: Shapes, found: Shapes, where: str) -> None:
    """Checks that names and shapes match exactly.

    Args:
      expected: name → shape of what must be there.
      found: name → shape of what is there.
      where: the path `found` comes from, for the error.

    Raises:
      UserError: one line with three lists: missing, unexpected and mismatched names, the last with
        both shapes. Each list shows its first names and the count.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    mismatched = [
        f"{name} (expected {list(shape)}, found {list(found[name])})"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    parts = _listed("missing", missing) + _listed("unexpected", unexpected)
    parts += _listed("mismatched", mismatched)
    if parts:
        raise UserError(f"{where}: arrays {'; '.join(parts)}")


def check_names(expected: Iterable[str], found: Iterable[str], where: str) -> None:
    """Checks that names match exactly; raises `UserError` as `check_shapes` does."""
    check_shapes(dict.fromkeys(expected, ()), dict.fromkeys(found, ()), where)


def _listed(what: str, names: Iterable[str]) -> list[str]:
    # A damaged file may contain any name; the error must stay one line.
    names = [name if name.isprintable() else repr(name) for name in names]
    if not names:
        return []
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{what} ({len(names)}): {', '.join(names[:_LISTED])}{more}"]


def differing_fields(one: T5Config, other: T5Config) -> dict[str, tuple[Any, Any]]:
    """Returns ``{field: (value in one, value in other)}`` for the fields that differ."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in FIELDS + IMAGE_FIELDS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check_architecture(given: T5Config, inferred: T5Config, where: str = "the checkpoint") -> None:
    """Checks that a checkpoint has the configured architecture.

    Args:
      given: the configured architecture.
      inferred: the checkpoint's architecture.
      where: the checkpoint's path, for the error.

    Raises:
      UserError: one line with every differing field and both values.
    """
    differing = differing_fields(given, inferred)
    if differing:
        fields = ", ".join(
            f"{name} (configured {ours}, checkpoint {theirs})"
            for name, (ours, theirs) in differing.items()
        )
        raise UserError(f"{where}: not the configured architecture: {fields}")
