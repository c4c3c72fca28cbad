"""The adaptation methods. A new method is one file here, one line below, and one gin file."""

from adalink_jax.errors import UserError
from adalink_jax.methods.adalink import AdaLink
from adalink_jax.methods.base import Method
from adalink_jax.methods.bitfit import BitFit
from adalink_jax.methods.bottleneck import Bottleneck
from adalink_jax.methods.compacter import Compacter
from adalink_jax.methods.compose import Compose
from adalink_jax.methods.dora import DoRA
from adalink_jax.methods.embedding_lora import EmbeddingLoRA
from adalink_jax.methods.full import Full
from adalink_jax.methods.glora import GLoRA
from adalink_jax.methods.ia3 import IA3
from adalink_jax.methods.input_scaling import InputScaling
from adalink_jax.methods.invertible import Invertible
from adalink_jax.methods.llama_adapter import LLaMAAdapter
from adalink_jax.methods.lora import LoRA
from adalink_jax.methods.norm_tuning import NormTuning
from adalink_jax.methods.peanut import PEANuT
from adalink_jax.methods.position_offsets import PositionOffsets
from adalink_jax.methods.prefix_tuning import PrefixTuning
from adalink_jax.methods.projection import Projection
from adalink_jax.methods.prompt_tuning import PromptTuning
from adalink_jax.methods.propetl import ProPETL
from adalink_jax.methods.reft import ReFT
from adalink_jax.methods.translation import Translation
from adalink_jax.methods.vera import VeRA

METHODS: dict[str, type[Method]] = {
    "adalink": AdaLink,
    "lora": LoRA,
    "prompt_tuning": PromptTuning,
    "translation": Translation,
    "embedding_lora": EmbeddingLoRA,
    "position_offsets": PositionOffsets,
    "invertible": Invertible,
    "dora": DoRA,
    "vera": VeRA,
    "peanut": PEANuT,
    "glora": GLoRA,
    "ia3": IA3,
    "bitfit": BitFit,
    "input_scaling": InputScaling,
    "norm_tuning": NormTuning,
    "bottleneck": Bottleneck,
    "compacter": Compacter,
    "propetl": ProPETL,
    "prefix_tuning": PrefixTuning,
    "llama_adapter": LLaMAAdapter,
    "reft": ReFT,
    "compose": Compose,
    "projection": Projection,
    "full": Full,
}


def check_known(method: Method) -> None:
    """Raises `UserError` unless a method and its parts are in `METHODS`, as who loads them asks."""
    for part in (method, *filter(None, map(method.part, method.scopes))):
        if METHODS.get(part.scope) is not type(part):
            name = type(part).__name__
            raise UserError(
                f"{name} is not in METHODS (adalink_jax/methods/__init__.py) by its scope "
                f"{part.scope!r}, so that its adapter could not be loaded"
            )
