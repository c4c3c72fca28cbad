"""The layers of T5, under T5X's parameter names and logical axes.

Source: T5X's minimal T5 (``t5x/examples/t5/layers.py``), whose checkpoints load unchanged. A layer
calls its method's hooks at the sites described in `adalink_jax.methods.base`.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import param_with_axes
from flax.linen.spmd import with_logical_constraint as with_sharding_constraint
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Memory, Method, Site
from adalink_jax.models.activations import FUNCTIONS
from adalink_jax.models.config import T5Config
from adalink_jax.models.kernels import product, values

# An int, or a symbolic expression if `jax.export` traces with symbolic shapes.
Size = Any

# Attention logits of masked pairs, as in T5X. bfloat16 can represent it.
_MASKED = -1e10

_NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_TRUNCATED_NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class Linear(nn.Module):
    """A linear layer without bias, between the method's hooks `operand` and `linear`.

    Attributes:
      features: Dout.
      axes: the kernel's logical axes.
      site: the layer's place in the network.
      method: the method whose hooks are called.
      dtype: dtype of the product.
      kernel_init: initializer of the float32 kernel [Din, Dout].
    """

    features: int
    axes: tuple[str, str]
    site: Site
    method: Method
    dtype: Any
    kernel_init: Callable[..., Array] = _TRUNCATED_NORMAL

    @nn.compact
    def __call__(self, x: Float[Array, "B T Din"], ctx: Context) -> Float[Array, "B T Dout"]:
        shape = (x.shape[-1], self.features)
        kernel = param_with_axes("kernel", self.kernel_init, shape, jnp.float32, axes=self.axes)
        x = self.method.operand(x.astype(self.dtype), self.site, ctx)
        # Tokens are flattened, because a contraction over two axes in the kernel's gradient makes
        # XLA transpose whole activations and recompute what is fused into them.
        y = product(x.reshape(-1, x.shape[-1]), kernel, self.dtype)
        y = y.reshape(*x.shape[:-1], self.features)

        def weights() -> Float[Array, "Din Dout"]:
            return values(kernel).astype(jnp.float32)

        return self.method.linear(x, y, weights, self.site, ctx)


class LayerNorm(nn.Module):
    """T5's layer norm: division by the root mean square, no mean, no bias, in float32.

    The method's `norm` hook follows it.
    """

    site: Site
    method: Method
    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], ctx: Context) -> Float[Array, "B T D"]:
        shape = (x.shape[-1],)
        scale = param_with_axes("scale", nn.initializers.ones, shape, jnp.float32, axes=("embed",))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jax.lax.square(x), axis=-1, keepdims=True)
        y = (x * jax.lax.rsqrt(mean_square + self.epsilon)).astype(self.dtype)
        return self.method.norm(y * scale.astype(self.dtype), self.site, ctx)


class Embed(nn.Module):
    """The token table [V, D]. Tokens are gathered; a one-hot product would cost B·T·V·D."""

    num_embeddings: int
    features: int
    dtype: Any

    def setup(self):
        self.embedding = param_with_axes(
            "embedding",
            nn.initializers.normal(1.0),
            (self.num_embeddings, self.features),
            jnp.float32,
            axes=("vocab", "embed"),
        )

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
        return with_sharding_constraint(x, ("batch", "length", "embed"))

    def attend(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns float32 logits, with the table as output layer (T5 1.0), scaled by 1/√D."""
        logits = x.astype(jnp.float32) @ self.embedding.T
        return logits / np.sqrt(x.shape[-1])


class ImageProjection(nn.Module):
    """The linear layer from an image encoder's vectors to the width of the text's embeddings."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "B M Dv"]) -> Float[Array, "B M D"]:
        shape, axes = (images.shape[-1], self.features), ("image_width", "embed")
        kernel = param_with_axes("kernel", _TRUNCATED_NORMAL, shape, jnp.float32, axes=axes)
        zeros = nn.initializers.zeros
        bias = param_with_axes("bias", zeros, (self.features,), jnp.float32, axes=("embed",))
        y = product(images.astype(self.dtype).reshape(-1, shape[0]), kernel, self.dtype)
        y = y.reshape(*images.shape[:-1], self.features) + bias.astype(self.dtype)
        return with_sharding_constraint(y, ("batch", "length", "embed"))


def _bucket_thresholds(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the smallest distance in each of the buckets 1, 2, … of one direction.

    The first half of T5's buckets hold one distance each; the others are logarithmic up to
    `max_distance`. Thresholds are integers, so that buckets do not depend on a device's logarithm.
    """
    exact = num_buckets // 2
    distance = np.arange(exact, max_distance + 1)
    log_ratio = np.log(distance.astype(np.float32) / exact + np.finfo(np.float32).eps)
    bucket = exact + (log_ratio / np.log(max_distance / exact) * (num_buckets - exact)).astype(int)
    large = distance[np.searchsorted(bucket, np.arange(exact + 1, num_buckets))]
    return np.concatenate([np.arange(1, exact + 1), large]).astype(np.int32)


def relative_position_bucket(
    offset: Int[Array, "*shape"],
    bidirectional: bool = True,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Int[Array, "*shape"]:
    """Returns T5's bucket of each offset, the key's position less the query's."""
    buckets = num_buckets // 2 if bidirectional else num_buckets
    thresholds = _bucket_thresholds(buckets, max_distance)
    distance = jnp.abs(offset) if bidirectional else jnp.maximum(-offset, 0)
    bucket = jnp.sum(distance[..., None] >= thresholds, axis=-1)
    return bucket + jnp.where(offset > 0, buckets, 0) if bidirectional else bucket


class RelativePositionBiases(nn.Module):
    """T5's biases of attention logits by bucketed relative position; one table per stack."""

    num_heads: int
    bidirectional: bool
    dtype: Any
    num_buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def __call__(self, q_length: Size, k_length: Size) -> Float[Array, "1 N Tq Tk"]:
        table = param_with_axes(
            "rel_embedding",
            nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
            (self.num_heads, self.num_buckets),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
        )
        # Key position minus query position, from -(Tq-1) to Tk-1.
        offset = jnp.arange(q_length + k_length - 1) - (q_length - 1)
        bucket = relative_position_bucket(
            offset, self.bidirectional, self.num_buckets, self.max_distance
        )
        by_offset = jnp.take(table, bucket, axis=1).astype(self.dtype)  # [N, Tq+Tk-1]
        query, key = jnp.arange(q_length)[:, None], jnp.arange(k_length)[None, :]
        return by_offset[:, key - query + (q_length - 1)][None]


class Attention(nn.Module):
    """Multi-head dot-product attention, with T5X's cache for decoding one token at a time.

    Logits are not divided by √K; T5 puts that factor into the query's initialization.
    """

    config: T5Config
    site: Site
    method: Method

    def _linear(self, layer: str, features: int, axes: tuple[str, str], init=_NORMAL) -> Linear:
        site = Site(self.site.stack, self.site.block, layer)
        return Linear(features, axes, site, self.method, self.config.dtype, init, name=layer)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Tq D"],
        source: Float[Array, "B Tk D"],
        ctx: Context,
        source_ctx: Context,
        residual: Float[Array, "B Tq D"],
        mask: Bool[Array, "B 1 Tq Tk"] | None = None,
        bias: Float[Array, "1 N L M"] | None = None,
        decode: bool = False,
    ) -> Float[Array, "B Tq D"]:
        """Attends from x to source.

        Args:
          x: sequence of the queries.
          source: sequence of the keys and values.
          ctx: context of x.
          source_ctx: context of source.
          residual: the stream to which the result is added.
          mask: True where a query may see a key.
          bias: added to the logits; with a cache, for the cache's whole length.
          decode: whether to use a cache of keys and values. If the variables have none, it is
            made for x's length; otherwise x is the next token.
        """
        cfg = self.config
        heads = (cfg.num_heads, cfg.head_dim)
        width = cfg.num_heads * cfg.head_dim

        def query_init(key, shape, dtype=None, out_sharding=None):
            return _NORMAL(key, shape, dtype, out_sharding) / jnp.sqrt(cfg.head_dim)

        def split(t: Float[Array, "B T W"]) -> Float[Array, "B T N C"]:
            t = t.reshape(*t.shape[:2], *heads)
            return with_sharding_constraint(t, ("batch", "length", "heads", "kv"))

        key = self._linear("key", width, ("embed", "joined_kv"))
        value = self._linear("value", width, ("embed", "joined_kv"))

        def project(vectors: Float[Array, "B P D"], routes: Int[Array, "B P"] | None):
            own = dataclasses.replace(
                ctx,
                mask=jnp.ones(vectors.shape[:2], bool),
                routes=routes,
                segment_ids=None,
                positions=None,
                modalities=None if ctx.modalities is None else jnp.zeros(vectors.shape[:2], int),
            )
            return split(key(vectors, own)), split(value(vectors, own))

        q = split(self._linear("query", width, ("embed", "joined_kv"), query_init)(x, ctx))

        def projected() -> tuple[Array, Array]:
            return split(key(source, source_ctx)), split(value(source, source_ctx))

        crosses = self.site.block == "encoder_decoder_attention"
        k, v = self._kept(projected) if crosses else projected()
        biases = (bias, ctx.memory_bias if bias is not None else None)
        if decode:
            k, v, mask, biases = self._cached(k, v, mask, biases)
        bias, memory_bias = biases
        queries = dataclasses.replace(ctx, memory_bias=memory_bias)
        factors = None
        if memory := self.method.keys_values(x, k, v, self.site, queries):
            k, v, mask, bias, factors = _with_memory(memory, k, v, mask, bias)
        y = self._attend(q, k, v, mask, bias, factors, ctx.deterministic)
        y = self.method.attended(q, y, project, self.site, ctx)
        y = y.reshape(*y.shape[:2], width)
        y = self._linear("out", x.shape[-1], ("joined_kv", "embed"))(y, ctx)
        return self.method.sublayer(y, x, residual, self.site, ctx)

    def _attend(
        self, q, k, v, mask, bias, factors, deterministic: bool
    ) -> Float[Array, "B Tq N K"]:
        """Attends; `factors` [B,1,Tq,Tk] multiplies keys and values for each query."""
        cfg = self.config
        # The kernel's gradients take an even number of queries and of keys.
        even = q.shape[1] % 2 == k.shape[1] % 2 == 0
        if cfg.attention == "cudnn" and even and factors is None:
            return self._attend_by_cudnn(q, k, v, mask, bias, deterministic)
        logits_dtype = jnp.float32 if cfg.float32_attention_logits else cfg.dtype
        logits = jnp.einsum("bqnk,bsnk->bnqs", q.astype(logits_dtype), k.astype(logits_dtype))
        if factors is not None:
            logits = logits * factors.astype(logits_dtype)
        if bias is not None:
            logits = logits + bias.astype(logits_dtype)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.asarray(_MASKED, logits_dtype))
        weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(cfg.dtype)
        if not deterministic and cfg.dropout_rate > 0.0:
            weights = weights * self._kept_keys(k)
        if factors is not None:
            weights = weights * factors.astype(cfg.dtype)
        return jnp.einsum("bnqs,bsnk->bqnk", weights, v)

    def _attend_by_cudnn(
        self, q, k, v, mask, bias, deterministic: bool
    ) -> Float[Array, "B Tq N K"]:
        """As `_attend`, in one kernel, whose logits and softmax are float32."""
        if jax.default_backend() != "gpu":
            raise UserError(
                f"attention is 'cudnn', which needs an NVIDIA GPU, and this is a "
                f"{jax.default_backend()}; use 'xla'"
            )
        if jax.__version_info__ < (0, 11):
            raise UserError(
                f"attention is 'cudnn', which needs jax 0.11: in {jax.__version__} the kernel has "
                "no gradient of T5's position biases; use 'xla'"
            )
        if not deterministic and self.config.dropout_rate > 0.0:
            # A key that all queries drop is a value that is 0 for all.
            v = v * self._kept_keys(k).transpose(0, 3, 1, 2)
        y = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=1.0, implementation="cudnn")
        if mask is None:
            return y
        # A query that sees no key is padding. The kernel's gradients of keys and values for it are
        # not those of the mean that softmax gives there, so it gets none.
        seen = jnp.any(mask, axis=-1).transpose(0, 2, 1)[..., None]
        return jnp.where(seen, y, 0)

    def _kept_keys(self, k: Float[Array, "B Tk N K"]) -> Float[Array, "B N 1 Tk"]:
        """Draws dropout's factors of keys: T5 drops whole keys, and all queries share the mask."""
        keep_rate = 1.0 - self.config.dropout_rate
        shape = (k.shape[0], k.shape[2], 1, k.shape[1])
        keep = jax.random.bernoulli(self.make_rng("dropout"), keep_rate, shape)
        return (keep / keep_rate).astype(self.config.dtype)

    def _kept(self, projected: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
        """Returns keys and values of the encoded sequence, which "source" keeps where it is made.

        A loop inside one program needs no such collection, as XLA moves them out of it.
        """
        if self.has_variable("source", "key"):
            return self.get_variable("source", "key"), self.get_variable("source", "value")
        k, v = projected()
        if self.is_mutable_collection("source") and not self.is_initializing():
            self.put_variable("source", "key", k)
            self.put_variable("source", "value", v)
        return k, v

    def _cached(self, k, v, mask, biases):
        """Adds one token's key and value to the cache; returns what its query may see."""
        ready = self.has_variable("cache", "cached_key")
        keys = self.variable("cache", "cached_key", jnp.zeros, k.shape, k.dtype)
        values = self.variable("cache", "cached_value", jnp.zeros, v.shape, v.dtype)
        index = self.variable("cache", "cache_index", lambda: jnp.zeros((), jnp.int32))
        if not ready:
            return k, v, mask, biases
        if k.shape[1] != 1:
            raise ValueError(f"with a cache, one token is decoded at a time; got {k.shape[1]}")
        now = index.value
        keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, k, now, axis=1)
        values.value = jax.lax.dynamic_update_slice_in_dim(values.value, v, now, axis=1)
        index.value = now + 1
        length = keys.value.shape[1]
        biases = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, now, 1, axis=2), biases)
        past = (jnp.arange(length) <= now)[None, None, None, :]
        return keys.value, values.value, past, biases


def _with_memory(memory: Memory, k, v, mask, bias):
    """Puts a method's keys in front of the block's own; the last result is their factors."""
    extra, length = memory.keys.shape[1], k.shape[1]
    if mask is not None or memory.mask is not None:
        front = jnp.ones((1, 1, extra), bool) if memory.mask is None else memory.mask
        own = jnp.ones((1, 1, 1, length), bool) if mask is None else mask
        mask = _joined(front[:, None], own)
    if bias is not None or memory.bias is not None:
        front = jnp.zeros((1, 1, 1, extra), k.dtype) if memory.bias is None else memory.bias
        own = jnp.zeros((1, 1, 1, length), k.dtype) if bias is None else bias
        bias = _joined(front, own)
    factors = None
    if memory.gate is not None:
        front = jnp.repeat(memory.gate[:, None], extra, axis=-1)
        factors = _joined(front, jnp.ones((1, 1, 1, length), front.dtype))
    k = jnp.concatenate([memory.keys.astype(k.dtype), k], axis=1)
    v = jnp.concatenate([memory.values.astype(v.dtype), v], axis=1)
    return k, v, mask, bias, factors


def _joined(front: Array, own: Array) -> Array:
    """Concatenates along the last axis; the other axes are equal or 1."""
    common = jnp.broadcast_shapes(front.shape[:-1], own.shape[:-1])
    both = [jnp.broadcast_to(x, (*common, x.shape[-1])) for x in (front, own)]
    return jnp.concatenate(both, axis=-1)


class MlpBlock(nn.Module):
    """T5's feed-forward block: ReLU (1.0) or a product of activations (1.1: gelu · linear)."""

    config: T5Config
    site: Site
    method: Method

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], ctx: Context, residual: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """Transforms x; the result is added to `residual`."""
        cfg = self.config

        def linear(layer: str, features: int, axes: tuple[str, str]) -> Linear:
            site = Site(self.site.stack, self.site.block, layer)
            return Linear(features, axes, site, self.method, cfg.dtype, name=layer)

        branches = []
        for i, name in enumerate(cfg.mlp_activations):
            layer = "wi" if len(cfg.mlp_activations) == 1 else f"wi_{i}"
            branches.append(FUNCTIONS[name](linear(layer, cfg.mlp_dim, ("embed", "mlp"))(x, ctx)))
        hidden = functools.reduce(operator.mul, branches)
        hidden = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(hidden, ctx.deterministic)
        hidden = with_sharding_constraint(hidden, ("batch", "length", "mlp"))
        y = linear("wo", x.shape[-1], ("mlp", "embed"))(hidden, ctx)
        return self.method.sublayer(y, x, residual, self.site, ctx)
