"""How many directions the encoder's outputs take, before and after an adaptation.

The effective rank of a matrix (Roy & Vetterli 2007) is the exponential of the entropy of its
singular values, divided by their sum: k where k of them are equal and the others zero. The rows
here are what the encoder gives for each token of a task's inputs, not centred. Fewer directions
after the adaptation than before mean that it gave up some of the base's, as PT-PEFT's authors find
of LoRA and adapters, and not of prefixes (Kim et al. 2024, arXiv 2411.00029).
"""

import argparse
import json

import jax
import numpy as np
from jaxtyping import Float

from adalink_jax import files
from adalink_jax.adapters.load import load_adaptation
from adalink_jax.methods.base import Method, Params
from adalink_jax.models.inputs import IMAGES
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.tables import markdown

_LENGTHS = {"inputs": 512, "targets": 64}
_BATCH_SIZE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the adapter, its base, and the tasks whose inputs are encoded."""
    parser.add_argument("adapter", help="an adapter's folder or its run's")
    parser.add_argument("--base", required=True, help="the base it was trained on")
    parser.add_argument("--task", nargs="+", required=True, help="tasks, its own or others")
    parser.add_argument("--route", help="the route's name, for an adapter with several")
    parser.add_argument("--split", default="validation", help="the split of all tasks")
    parser.add_argument("--limit", type=int, help="only so many inputs of each, the first ones")
    parser.add_argument("--to", help="a JSON file to write the numbers to as well")


def run(flags: argparse.Namespace) -> None:
    """Prints a line for each task, and writes the numbers."""
    from adalink_jax.data.corpus import check_ready
    from adalink_jax.data.scored import EvalExamples

    for name in flags.task:
        check_ready(name)
    adaptation = load_adaptation(flags.adapter, flags.base)
    config, route = adaptation.config, adaptation.adapter.route(flags.route)
    found = {}
    for name in dict.fromkeys(flags.task):
        examples = EvalExamples(name, flags.split, _LENGTHS, flags.limit)
        before, tokens = moments(config, Method(), adaptation.base, examples, 0)
        after, _ = moments(config, adaptation.method, adaptation.params, examples, route)
        ranks = {"base": effective_rank(before), "adapted": effective_rank(after)}
        found[name] = {"inputs": len(examples), "tokens": tokens, **ranks}
    rows = [
        [name, f"{one['inputs']:,}", f"{one['tokens']:,}", f"{one['base']:.1f}",
         f"{one['adapted']:.1f}"]
        for name, one in found.items()
    ]  # fmt: skip
    header = ["task", "inputs", "tokens", "effective rank, base", "adapted"]
    print(f"of {config.emb_dim} dimensions, {flags.split}\n\n{markdown(header, rows)}")
    if flags.to:
        record = {"dimensions": config.emb_dim, "split": flags.split, "tasks": found}
        files.write_text(flags.to, json.dumps(record, indent=1, sort_keys=True) + "\n")


def moments(
    config: T5Config, method: Method, params: Params, examples, route: int
) -> tuple[Float[np.ndarray, "D D"], int]:
    """Encodes the inputs of `EvalExamples`.

    Args:
      config: the architecture.
      method: the adapter's method.
      params: base and adapter in one tree.
      examples: the inputs.
      route: the route of all tokens.

    Returns:
      XᵀX in float64 and the number of rows of X, which are the encoder's outputs at all tokens.
    """
    model = Transformer(config, method)

    @jax.jit
    def encode(params, given):
        return model.apply({"params": params}, **given, enable_dropout=False, method="encode")

    total, count = np.zeros((config.emb_dim, config.emb_dim)), 0
    for batch in examples.batches(_BATCH_SIZE, route):
        tokens = batch["encoder_input_tokens"]
        names = ("encoder_input_tokens", "encoder_routes", *IMAGES)
        given = {name: batch[name] for name in names if name in batch}
        encoded = np.asarray(encode(params, given), np.float64)
        # Vectors that a method puts in front stand for no token.
        rows = encoded[:, encoded.shape[1] - tokens.shape[1] :][tokens > 0]
        total, count = total + rows.T @ rows, count + len(rows)
    return total, count


def effective_rank(moments: Float[np.ndarray, "D D"]) -> float:
    """Returns the effective rank of a matrix X, given XᵀX."""
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(moments), 0))
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))
