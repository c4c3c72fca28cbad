"""T5 1.0, 1.1 and FLAN-T5, with or without images: an encoder-decoder that calls a method's hooks.

Signatures, parameter names, logical axes and numerics are those of T5X's minimal T5
(``t5x/examples/t5/network.py``). So its public checkpoints load unchanged, and the module runs
inside T5X.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.methods.base import IMAGE, TEXT, Array, Context, Method, Site
from adalink_jax.models.config import T5Config
from adalink_jax.models.layers import (
    Attention,
    Embed,
    ImageProjection,
    LayerNorm,
    Linear,
    MlpBlock,
    RelativePositionBiases,
    Size,
)
from adalink_jax.models.stacking import is_stacked, run_layers, stack_layers


def _dropout(config: T5Config) -> nn.Dropout:
    # T5 drops the same features at all positions of a sequence.
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


def _biases(
    config: T5Config, length: Size, before: int, ctx: Context
) -> tuple[Float[Array, "1 N M M"], Float[Array, "1 N M P"] | None]:
    """Returns the biases of a stack, or of the layer in whose scope this is called.

    They are those of a sequence, and of its tokens to `before` positions in front of it.
    """
    biases = RelativePositionBiases(
        config.num_heads, ctx.stack == "encoder", config.dtype, name="relpos_bias"
    )
    longer = biases(length + before, length + before)[:, :, before:]
    own, front = longer[..., before:], longer[..., :before] if before else None
    if config.image_positions == "none" and ctx.stack == "encoder":
        assert ctx.modalities is not None  # The configuration has an image's width.
        text = ctx.modalities[0] == TEXT
        own = jnp.where(text[:, None] & text, own, 0)
        front = None if front is None else jnp.where(text[:, None], front, 0)
    return own, front


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each with a pre-norm and a residual connection."""

    config: T5Config
    method: Method

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        bias: Float[Array, "1 N T T"] | None,
        ctx: Context,
    ) -> Float[Array, "B T D"]:
        cfg, method = self.config, self.method
        if cfg.relpos_bias_per_layer:
            bias, front = _biases(cfg, x.shape[1], method.memory_positions("encoder"), ctx)
            ctx = dataclasses.replace(ctx, memory_bias=front)
        site = Site("encoder", "attention")
        y = LayerNorm(site, method, cfg.dtype, name="pre_attention_layer_norm")(x, ctx)
        y = Attention(cfg, site, method, name=site.block)(y, y, ctx, ctx, x, mask, bias)
        x = x + _dropout(cfg)(y, ctx.deterministic)

        site = Site("encoder", "mlp")
        y = LayerNorm(site, method, cfg.dtype, name="pre_mlp_layer_norm")(x, ctx)
        y = MlpBlock(cfg, site, method, name=site.block)(y, ctx, x)
        x = x + _dropout(cfg)(y, ctx.deterministic)
        return method.layer(x, Site("encoder", ""), ctx)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, and MLP."""

    config: T5Config
    method: Method

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        encoded: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 L L"] | None,
        cross_mask: Bool[Array, "B 1 L T"],
        bias: Float[Array, "1 N M M"] | None,
        length: Size,
        ctx: Context,
        encoder_ctx: Context,
        decode: bool,
    ) -> Float[Array, "B L D"]:
        cfg, method = self.config, self.method
        if cfg.relpos_bias_per_layer:
            bias, front = _biases(cfg, length, method.memory_positions("decoder"), ctx)
            ctx = dataclasses.replace(ctx, memory_bias=front)
        site = Site("decoder", "self_attention")
        y = LayerNorm(site, method, cfg.dtype, name="pre_self_attention_layer_norm")(x, ctx)
        attention = Attention(cfg, site, method, name=site.block)
        y = attention(y, y, ctx, ctx, x, mask, bias, decode=decode)
        x = x + _dropout(cfg)(y, ctx.deterministic)

        site = Site("decoder", "encoder_decoder_attention")
        y = LayerNorm(site, method, cfg.dtype, name="pre_cross_attention_layer_norm")(x, ctx)
        attention = Attention(cfg, site, method, name=site.block)
        y = attention(y, encoded, ctx, encoder_ctx, x, cross_mask)
        x = x + _dropout(cfg)(y, ctx.deterministic)

        site = Site("decoder", "mlp")
        y = LayerNorm(site, method, cfg.dtype, name="pre_mlp_layer_norm")(x, ctx)
        y = MlpBlock(cfg, site, method, name=site.block)(y, ctx, x)
        x = x + _dropout(cfg)(y, ctx.deterministic)
        return method.layer(x, Site("decoder", ""), ctx)


class Encoder(nn.Module):
    """Images and embedded text in one sequence, the method's `inputs`, and the encoder's layers."""

    config: T5Config
    shared_embedding: Embed
    method: Method

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], ctx: Context, images: Float[Array, "B M Dv"] | None
    ) -> Float[Array, "B T2 D"]:
        cfg, method = self.config, self.method
        embed = self.shared_embedding
        if cfg.separate_encoder_embedding:
            embed = Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype, name="token_embedder")
        x = embed(tokens)
        if images is not None:
            projected = ImageProjection(cfg.emb_dim, cfg.dtype, name="image_projection")(images)
            x = jnp.concatenate([projected, x], axis=1)
            tokens = jnp.pad(tokens, ((0, 0), (images.shape[1], 0)))
        x, ctx = method.inputs(x, dataclasses.replace(ctx, tokens=tokens))
        x = _dropout(cfg)(x, ctx.deterministic).astype(cfg.dtype)
        mask = pair_mask(ctx.mask, ctx.mask)
        if ctx.segment_ids is not None:
            mask &= pair_equal(ctx.segment_ids, ctx.segment_ids)
        bias, front = None, None
        if not cfg.relpos_bias_per_layer:
            bias, front = _biases(cfg, x.shape[1], method.memory_positions("encoder"), ctx)
        ctx = dataclasses.replace(ctx, tokens=None, memory_bias=front, shared=method.prepare(ctx))

        def run(layer: EncoderLayer, x: Array, gate: Any = 1.0) -> Array:
            return layer(x, mask, bias, dataclasses.replace(ctx, gate=gate))

        x = run_layers(self, EncoderLayer, cfg.num_encoder_layers, run, x)
        x = LayerNorm(Site("encoder", ""), method, cfg.dtype, name="encoder_norm")(x, ctx)
        # Unlike the others, T5's last encoder dropout is drawn per position.
        return nn.Dropout(cfg.dropout_rate)(x, ctx.deterministic)


class Decoder(nn.Module):
    """Embedding, the method's `inputs`, the stack of decoder layers, and the logits."""

    config: T5Config
    shared_embedding: Embed
    method: Method

    @nn.compact
    def __call__(
        self,
        encoded: Float[Array, "B T2 D"],
        tokens: Int[Array, "B L"],
        ctx: Context,
        encoder_ctx: Context,
        decode: bool = False,
        max_decode_length: Size | None = None,
    ) -> Float[Array, "B L V"]:
        cfg, method = self.config, self.method
        x, lengthened = method.inputs(
            self.shared_embedding(tokens), dataclasses.replace(ctx, tokens=tokens)
        )
        if x.shape[1] != tokens.shape[1]:
            raise UserError(
                f"{type(method).__name__} lengthens the decoder's sequence, whose positions "
                "are the predictions; only the encoder's may be lengthened"
            )
        ctx = lengthened
        x = _dropout(cfg)(x, ctx.deterministic).astype(cfg.dtype)
        # While decoding, the targets' padding is not known, so every query sees the encoder.
        queries = jnp.ones_like(ctx.mask) if decode else ctx.mask
        mask = pair_mask(queries, queries) & causal_mask(x.shape[1])
        cross_mask = pair_mask(queries, encoder_ctx.mask)
        if ctx.segment_ids is not None:
            mask &= pair_equal(ctx.segment_ids, ctx.segment_ids)
            assert encoder_ctx.segment_ids is not None  # Both sequences are packed, or none.
            cross_mask &= pair_equal(ctx.segment_ids, encoder_ctx.segment_ids)
        length = max_decode_length if decode and max_decode_length else x.shape[1]
        bias, front = None, None
        if not cfg.relpos_bias_per_layer:
            bias, front = _biases(cfg, length, method.memory_positions("decoder"), ctx)
        ctx = dataclasses.replace(ctx, tokens=None, memory_bias=front, shared=method.prepare(ctx))
        encoder_ctx = dataclasses.replace(encoder_ctx, shared=ctx.shared)

        def run(layer: DecoderLayer, x: Array, gate: Any = 1.0) -> Array:
            own = dataclasses.replace(ctx, gate=gate)
            crossed = dataclasses.replace(encoder_ctx, gate=gate)
            return layer(x, encoded, mask, cross_mask, bias, length, own, crossed, decode)

        x = run_layers(self, DecoderLayer, cfg.num_decoder_layers, run, x)
        x = LayerNorm(Site("decoder", ""), method, cfg.dtype, name="decoder_norm")(x, ctx)
        x = _dropout(cfg)(x, ctx.deterministic)
        if cfg.logits_via_embedding:
            return self.shared_embedding.attend(x)
        # The output layer is not a site: neither LoRA's nor AdaLink's paper adapts it.
        site = Site("decoder", "", "logits_dense")
        logits = Linear(
            cfg.vocab_size, ("embed", "vocab"), site, Method(), jnp.float32, name="logits_dense"
        )
        return logits(x, ctx)


def pair_mask(queries: Bool[Array, "B Q"], keys: Bool[Array, "B S"]) -> Bool[Array, "B 1 Q S"]:
    """Returns True where both the query and the key are real."""
    return queries[:, None, :, None] & keys[:, None, None, :]


def pair_equal(queries: Int[Array, "B Q"], keys: Int[Array, "B S"]) -> Bool[Array, "B 1 Q S"]:
    """Returns True where query and key belong to the same segment."""
    return queries[:, None, :, None] == keys[:, None, None, :]


def causal_mask(length: Size) -> Bool[Array, "1 1 L L"]:
    """Returns True where the key does not come after the query."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


class Transformer(nn.Module):
    """T5 with a method's hooks. ``Transformer(config)`` is the base without a method.

    Layers under public names run one after another; stacked layers run in a scan
    (`adalink_jax.models.stacking`). An adapter is scanned with a stacked base.

    Attributes:
      config: the architecture.
      method: the method whose hooks are called.
      route_slots: maximum number of distinct routes in a row; 1 if a row is one example.

    Examples:
      >>> model = al.Transformer(config, al.AdaLink(rank=4))
      >>> tokens = np.array([[17, 23, 1]])
      >>> model.apply({"params": params}, tokens, tokens, tokens, enable_dropout=False).shape
      (1, 3, 384)
    """

    config: T5Config
    method: Method = Method()
    route_slots: int = 1

    def setup(self):
        cfg = self.config
        if self.method.needs_images and cfg.image_width is None:
            raise UserError(
                f"{type(self.method).__name__} adapts images, but the base reads text alone: its "
                "image_width is None"
            )
        self.token_embedder = Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
        self.encoder = Encoder(cfg, self.token_embedder, self.method)
        self.decoder = Decoder(cfg, self.token_embedder, self.method)

    @nn.nowrap
    def apply(self, variables: Mapping[str, Any], *args, **kwargs) -> Any:
        """As Flax's `apply`. Beside a stacked base, an adapter is stacked first."""
        if is_stacked(variables["params"]):
            variables = {**variables, "params": stack_layers(variables["params"])}
        return super().apply(variables, *args, **kwargs)

    def _context(self, stack, mask, routes, segment_ids, positions, enable_dropout) -> Context:
        if routes is not None:
            # Padding takes no slot of its own.
            routes = jnp.where(mask, routes, routes[:, :1])
        text_alone = self.config.image_width is None
        return Context(
            mask=mask,
            routes=routes,
            segment_ids=segment_ids,
            positions=positions,
            modalities=None if text_alone else jnp.full(mask.shape, TEXT),
            stack=stack,
            width=self.config.emb_dim,
            vocab_size=self.config.vocab_size,
            route_slots=self.route_slots,
            deterministic=not enable_dropout,
        )

    def _joint_context(
        self, tokens, image_mask, routes, segment_ids, positions, enable_dropout
    ) -> Context:
        """Returns the context of the encoder's sequence: images on the row's first route, text."""
        ctx = self._context("encoder", tokens > 0, routes, segment_ids, positions, enable_dropout)
        if image_mask is None:
            return ctx
        if ctx.modalities is None:
            raise UserError(
                "the batch has images, but the base reads text alone: its image_width is None"
            )
        if segment_ids is not None:
            raise UserError(
                "images stand in front of a row, but the rows are packed with several examples; "
                "set packing to False"
            )
        of_images = jnp.full(image_mask.shape, IMAGE)
        return dataclasses.replace(
            ctx.lengthened(image_mask.shape[1]),
            mask=jnp.concatenate([image_mask > 0, ctx.mask], axis=1),
            modalities=jnp.concatenate([of_images, ctx.modalities], axis=1),
        )

    def encode(
        self,
        encoder_input_tokens: Int[Array, "B T"],
        encoder_segment_ids: Int[Array, "B T"] | None = None,
        enable_dropout: bool = True,
        *,
        encoder_positions: Int[Array, "B T"] | None = None,
        encoder_routes: Int[Array, "B T"] | None = None,
        encoder_images: Float[Array, "B M Dv"] | None = None,
        encoder_image_mask: Int[Array, "B M"] | None = None,
    ) -> Float[Array, "B T2 D"]:
        """Runs the encoder, on images and text in one sequence.

        Args:
          encoder_input_tokens: token ids, 0 on padding.
          encoder_segment_ids: the packed example of each token, from 1.
          enable_dropout: whether dropout is on (needs a "dropout" rng).
          encoder_positions: position of each token in its packed example.
          encoder_routes: each token's route, for methods with several routes.
          encoder_images: the vectors that an image encoder gives of each row's pictures; None for
            rows of text.
          encoder_image_mask: 1 where such a vector is real, 0 on padding; None if all are.

        Returns:
          The encoded sequence: P vectors if the method puts them first, then M of images, then T of
          the tokens.
        """
        width = self.config.image_width
        if encoder_images is not None and encoder_image_mask is None:
            encoder_image_mask = jnp.ones(encoder_images.shape[:2], jnp.int32)
        ctx = self._joint_context(
            encoder_input_tokens,
            encoder_image_mask,
            encoder_routes,
            encoder_segment_ids,
            encoder_positions,
            enable_dropout,
        )
        if encoder_images is None and width is not None:
            # So that the projection is there, whatever a batch has.
            encoder_images = jnp.zeros((encoder_input_tokens.shape[0], 0, width))
        elif encoder_images is not None and encoder_images.shape[2] != width:
            raise UserError(
                f"images are vectors of {encoder_images.shape[2]} numbers, but the base's "
                f"image_width is {width}"
            )
        return self.encoder(encoder_input_tokens, ctx, encoder_images)

    def decode(
        self,
        encoded: Float[Array, "B T2 D"],
        encoder_input_tokens: Int[Array, "B T"],
        decoder_input_tokens: Int[Array, "B L"],
        decoder_target_tokens: Int[Array, "B L"],
        encoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_segment_ids: Int[Array, "B L"] | None = None,
        decoder_positions: Int[Array, "B L"] | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: Size | None = None,
        *,
        encoder_routes: Int[Array, "B T"] | None = None,
        decoder_routes: Int[Array, "B L"] | None = None,
        encoder_image_mask: Int[Array, "B M"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Runs the decoder on encoded inputs.

        Args:
          encoded: the result of `encode`.
          encoder_input_tokens: for the mask of the encoded sequence.
          decoder_input_tokens: the targets shifted right, 0 first.
          decoder_target_tokens: for the mask of the targets, 0 on padding.
          encoder_segment_ids: as in `encode`.
          decoder_segment_ids: the packed example of each target token.
          decoder_positions: position of each target token in its packed example.
          enable_dropout: whether dropout is on.
          decode: whether to use the "cache" collection. If there is none, it is made for L tokens;
            otherwise L is 1 and this is the next token.
          max_decode_length: with a cache, the length it was made for.
          encoder_routes: as in `encode`.
          decoder_routes: each target token's route.
          encoder_image_mask: as in `encode`; None if there were no images.

        Returns:
          float32 logits.
        """
        if decode and encoder_segment_ids is not None:
            raise ValueError("rows are not packed while decoding, but segment ids were given")
        encoder_ctx = self._joint_context(
            encoder_input_tokens,
            encoder_image_mask,
            encoder_routes,
            encoder_segment_ids,
            None,
            enable_dropout,
        )
        encoder_ctx = encoder_ctx.lengthened(encoded.shape[1] - encoder_ctx.mask.shape[1])
        ctx = self._context(
            "decoder",
            decoder_target_tokens > 0,
            decoder_routes,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout,
        )
        return self.decoder(
            encoded, decoder_input_tokens, ctx, encoder_ctx, decode, max_decode_length
        )

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "B T"],
        decoder_input_tokens: Int[Array, "B L"],
        decoder_target_tokens: Int[Array, "B L"],
        encoder_segment_ids: Int[Array, "B T"] | None = None,
        decoder_segment_ids: Int[Array, "B L"] | None = None,
        encoder_positions: Int[Array, "B T"] | None = None,
        decoder_positions: Int[Array, "B L"] | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
        encoder_routes: Int[Array, "B T"] | None = None,
        decoder_routes: Int[Array, "B L"] | None = None,
        encoder_images: Float[Array, "B M Dv"] | None = None,
        encoder_image_mask: Int[Array, "B M"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Encodes, then decodes; arguments as in `encode` and `decode`."""
        if encoder_images is not None and encoder_image_mask is None:
            encoder_image_mask = jnp.ones(encoder_images.shape[:2], jnp.int32)
        encoded = self.encode(
            encoder_input_tokens,
            encoder_segment_ids,
            enable_dropout,
            encoder_positions=encoder_positions,
            encoder_routes=encoder_routes,
            encoder_images=encoder_images,
            encoder_image_mask=encoder_image_mask,
        )
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout,
            decode,
            encoder_routes=encoder_routes,
            decoder_routes=decoder_routes,
            encoder_image_mask=encoder_image_mask,
        )
