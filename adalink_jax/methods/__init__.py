"""The adaptation methods. A new method is one file here, one line below, and one gin file."""

from adalink_jax.methods.adalink import AdaLink
from adalink_jax.methods.base import Method
from adalink_jax.methods.full import Full
from adalink_jax.methods.lora import LoRA
from adalink_jax.methods.prompt_tuning import PromptTuning

METHODS: dict[str, type[Method]] = {
    "adalink": AdaLink,
    "lora": LoRA,
    "prompt_tuning": PromptTuning,
    "full": Full,
}
