"""Tiny image encoders as transformers makes and saves them, with their preprocessing."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

SIZE = 13  # Of pictures; patches of 4 leave a row and a column unseen.
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES |= {"image_size": SIZE, "patch_size": 4, "intermediate_size": 24}
_TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT |= {"intermediate_size": 8, "vocab_size": 20, "max_position_embeddings": 4}
_DINO = {name: value for name, value in _SIZES.items() if name != "intermediate_size"}
_DINO |= {"mlp_ratio": 2}
_QFORMER = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3}
_QFORMER |= {"intermediate_size": 20, "vocab_size": 30}
T5 = {"model_type": "t5", "d_model": 24, "d_kv": 5, "d_ff": 32, "num_layers": 2}
T5 |= {"num_decoder_layers": 2, "num_heads": 3, "vocab_size": 64, "feed_forward_proj": "gated-gelu"}
T5 |= {"dense_act_fn": "gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
IMAGE_TOKEN = 60

_SQUARE = {"size": {"height": SIZE, "width": SIZE}}
_CUT = {"size": {"shortest_edge": SIZE + 3}, "crop_size": _SQUARE["size"], "do_center_crop": True}
_PREPROCESSORS = {
    "ViT": {"image_processor_type": "ViTImageProcessor", **_SQUARE},
    "Siglip": {"image_processor_type": "SiglipImageProcessor", **_SQUARE},
    "CLIP": {"image_processor_type": "CLIPImageProcessor", **_CUT},
    "Dinov2": {"image_processor_type": "BitImageProcessor", **_CUT},
    "Blip2": {"image_processor_type": "BlipImageProcessor", **_SQUARE},
}
# Name of a case → the model's class and the arguments of its configuration.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTModel", _SIZES),
    "vit classifier": ("ViTForImageClassification", _SIZES),
    "siglip": ("SiglipModel", {"text_config": _TEXT, "vision_config": _SIZES}),
    "siglip tower": ("SiglipVisionModel", _SIZES),
    "clip": ("CLIPModel", {"text_config": _TEXT, "vision_config": _SIZES}),
    "clip tower": ("CLIPVisionModel", {**_SIZES, "hidden_act": "gelu"}),
    "dinov2": ("Dinov2Model", _DINO),
    "dinov2 gated": ("Dinov2Model", {**_DINO, "use_swiglu_ffn": True, "qkv_bias": False}),
    "blip-2": (
        "Blip2ForConditionalGeneration",
        {"vision_config": _SIZES, "qformer_config": _QFORMER, "text_config": T5}
        | {"num_query_tokens": 5, "image_token_index": IMAGE_TOKEN},
    ),
}
CASES = tuple(_MODELS)


def save(folder: pathlib.Path, case: str, shard_size: str = "5GB") -> Any:
    """Saves a random model of transformers, and returns it as transformers reads it again."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    name, arguments = _MODELS[case]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**arguments))
    with torch.no_grad():
        for parameter in model.parameters():  # Some start at zero, one, or all alike.
            parameter.copy_(torch.randn(parameter.shape) * 0.4)
    model.save_pretrained(folder, max_shard_size=shard_size)
    family = next(f for f in _PREPROCESSORS if name.startswith(f))
    configure(folder, _PREPROCESSORS[family], "preprocessor_config.json")
    return model_class.from_pretrained(folder).eval()


def configure(folder: pathlib.Path, settings: dict[str, Any], file: str = "config.json") -> None:
    """Changes settings in a JSON file; None removes one."""
    path = folder / file
    held = json.loads(path.read_text()) if path.is_file() else {}
    held = {k: v for k, v in {**held, **settings}.items() if v is not None}
    path.write_text(json.dumps(held))


def pictures(seed: int = 0) -> np.ndarray:
    """Prepared pictures [2, SIZE, SIZE, 3]."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((2, SIZE, SIZE, 3)).astype(np.float32)


def their_tokens(model: Any, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """The tokens of transformers' image tower, or of its Q-Former."""
    import torch

    values = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        if hasattr(model, "qformer"):
            found = model.get_image_features(values, return_dict=True).qformer_outputs
        else:
            tower = getattr(model, "vision_model", getattr(model, "vit", model))
            found = tower(values, **options)
    states = found.hidden_states[-2] if options else found.last_hidden_state
    return states.numpy()
