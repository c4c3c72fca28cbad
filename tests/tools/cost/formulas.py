"""What a method costs, by closed formulas: the oracle of the traced counts.

Letters: B batch, T encoder length, L target length, D model width, W = heads · head width,
F MLP width, V vocabulary, R rank, P prompt length. An operation is a multiplication or an
addition; only matrix products are counted, two operations to a multiply-add.

A backward pass costs, for each product ``A · B``, once the product for each of A and B that
gradients are taken of. Freezing a kernel saves its gradient, but the gradient of the layer's
input is needed wherever something that trains lies upstream: the frozen layers behind the first
trained parameter are passed through backwards whole, whatever the method. What lies before it
(the decoder up to its first cross-attention, say, where only the encoder's input is adapted) is
not. `_Walk` follows the network in this way, layer by layer.
"""

import math

from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.methods.adalink import AdaLink
from adalink_jax.methods.base import LINEAR_SITES, Method, Site
from adalink_jax.methods.full import Full
from adalink_jax.methods.lora import LoRA
from adalink_jax.methods.prompt_tuning import PromptTuning
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import Flops, Shape


def stored_parameters(config: T5Config, method: Method) -> int | None:
    """How many parameters an adapter's file holds, by formula.

    AdaLink 2·D·R a stack; LoRA R·(Din + Dout) a linear layer; prompt tuning P·D; each for K
    routes. Full fine-tuning stores the model.

    Returns:
      The count; None for a method that has no formula here.
    """
    if type(method) is AdaLink:
        return 2 * config.emb_dim * method.rank * method.routes * len(method.stacks)
    if type(method) is PromptTuning:
        return method.length * config.emb_dim * method.routes
    if type(method) is LoRA:
        return method.rank * method.routes * _lora_widths(config, method)
    if type(method) is Full:
        return sum(math.prod(shape) for shape in expected_shapes(config).values())
    return 0 if type(method) is Method else None


def _lora_widths(config: T5Config, method: LoRA) -> int:
    """The sum of Din + Dout over the linear layers that LoRA adapts."""
    attention = config.emb_dim + config.num_heads * config.head_dim
    mlp = config.emb_dim + config.mlp_dim
    count = len(config.mlp_activations)
    absent = {"mlp/wi"} if count > 1 else {"mlp/wi_0", "mlp/wi_1"}
    total = 0
    for stack in method.stacks:
        widths = sum(
            mlp if site.startswith("mlp") else attention
            for site in LINEAR_SITES[stack]
            if site not in absent and method.adapts(Site(stack, *site.split("/")))
        )
        layers = getattr(config, f"num_{stack}_layers")
        total += widths * int(method.gates(stack, layers).sum())
    return total


def flops(config: T5Config, method: Method, shape: Shape, slots: int = 1) -> Flops | None:
    """Operations of a training step's products, by formula.

    Args:
      config: the base's architecture.
      method: the method.
      shape: of the batch.
      slots: how many routes one row may hold; each costs the method's products once.

    Returns:
      The counts; None for a method that has no formula here.
    """
    if type(method) not in (Method, Full, AdaLink, LoRA, PromptTuning):
        return None
    return _Walk(config, method, shape, slots).flops()


class _Walk:
    """Goes through the network and sums the products; `active` says what gradients reach."""

    def __init__(self, config: T5Config, method: Method, shape: Shape, slots: int):
        self.config, self.method, self.shape = config, method, shape
        self.slots = min(slots, method.routes)
        self.forward = self.backward = self.own = 0
        self.width = config.num_heads * config.head_dim
        prompt = method.length if isinstance(method, PromptTuning) else 0
        self.inputs = shape.inputs + prompt

    def flops(self) -> Flops:
        cfg, batch = self.config, self.shape.batch
        encoded = self.stack_input("encoder", batch * self.inputs)
        for layer in range(cfg.num_encoder_layers):
            encoded = self.attention("encoder", "attention", layer, encoded, encoded)
            encoded = self.mlp("encoder", layer, encoded, batch * self.inputs)
        decoded = self.stack_input("decoder", batch * self.shape.targets)
        for layer in range(cfg.num_decoder_layers):
            decoded = self.attention("decoder", "self_attention", layer, decoded, decoded)
            block = "encoder_decoder_attention"
            decoded = self.attention("decoder", block, layer, decoded, encoded)
            decoded = self.mlp("decoder", layer, decoded, batch * self.shape.targets)
        tokens = batch * self.shape.targets
        self.product(tokens, cfg.emb_dim, cfg.vocab_size, decoded, self.method.trains_base)
        return Flops(self.forward, self.forward + self.backward, self.own)

    def product(self, rows, inner, columns, *active: bool, count: int = 1) -> None:
        """A product [rows, inner] · [inner, columns]; `active` for each factor."""
        once = 2 * rows * inner * columns * count
        self.forward += once
        self.backward += once * sum(map(bool, active))

    def low_rank(self, tokens: int, width: int, features: int, active: bool) -> None:
        """The method's own x · down · up, of which both matrices train."""
        before = self.forward + self.backward
        rank = self.method.rank
        self.product(tokens, width, rank, active, True, count=self.slots)
        self.product(tokens, rank, features, True, True, count=self.slots)
        self.own += self.forward + self.backward - before

    def stack_input(self, stack: str, tokens: int) -> bool:
        """What stands between embedding and first block; returns whether gradients reach it."""
        method, width = self.method, self.config.emb_dim
        if isinstance(method, AdaLink) and stack in method.stacks:
            # The embedding is frozen: x itself has no gradient.
            self.low_rank(tokens, width, width, active=False)
            return True
        if isinstance(method, PromptTuning) and stack == "encoder":
            if method.reparameterise:
                before = self.forward + self.backward
                rows = method.routes * method.length
                self.product(rows, width, method.bottleneck, True, True)
                self.product(rows, method.bottleneck, width, True, True)
                self.own += self.forward + self.backward - before
            return True
        return method.trains_base

    def linear(self, site: Site, layer: int, tokens: int, width, features, active: bool) -> bool:
        """A linear layer with what the method puts beside it; returns whether it is active."""
        method = self.method
        self.product(tokens, width, features, active, method.trains_base)
        if isinstance(method, LoRA) and method.adapts(site):
            layers = getattr(self.config, f"num_{site.stack}_layers")
            if method.gates(site.stack, layers)[layer]:
                self.low_rank(tokens, width, features, active)
                return True
        return active or method.trains_base

    def attention(self, stack, block, layer: int, x: bool, source: bool) -> bool:
        """A block of attention and its residual; `x` and `source` say what is active."""
        cfg, batch = self.config, self.shape.batch
        queries = self.inputs if stack == "encoder" else self.shape.targets
        keys = self.inputs if block != "self_attention" else self.shape.targets

        def linear(name, length, width, features, active):
            site = Site(stack, block, name)
            return self.linear(site, layer, batch * length, width, features, active)

        q = linear("query", queries, cfg.emb_dim, self.width, x)
        k = linear("key", keys, cfg.emb_dim, self.width, source)
        v = linear("value", keys, cfg.emb_dim, self.width, source)
        # Position biases train with the base, and with them the logits are active.
        logits = q or k or self.method.trains_base
        self.product(queries, self.width, keys, q, k, count=batch)
        self.product(queries, keys, self.width, logits, v, count=batch)
        return linear("out", queries, self.width, cfg.emb_dim, logits or v) or x

    def mlp(self, stack, layer: int, x: bool, tokens: int) -> bool:
        """An MLP and its residual."""
        cfg = self.config
        count = len(cfg.mlp_activations)
        hidden = False
        for i in range(count):
            site = Site(stack, "mlp", "wi" if count == 1 else f"wi_{i}")
            hidden |= self.linear(site, layer, tokens, cfg.emb_dim, cfg.mlp_dim, x)
        site = Site(stack, "mlp", "wo")
        return self.linear(site, layer, tokens, cfg.mlp_dim, cfg.emb_dim, hidden) or x
