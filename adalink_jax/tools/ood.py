"""How well an adapter's scores tell its own task's inputs from those of other tasks.

An input of another task also gets a label. Two numbers say how sure the model is of it: the largest
probability of a label (Hendrycks & Gimpel 2017, arXiv 1610.02136), and the energy, which is the
logarithm of the summed likelihoods of all labels (Liu et al. 2020, arXiv 2010.03759). Of each, the
area under the ROC curve is the probability that an input of the task has a larger one than another
input, in percent: 50 is chance. FPR95 is the share of other inputs that are taken for the task's
where 95 % of its own are. Inputs stand as their tasks write them, with their prefixes.
"""

import argparse
import json
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

from adalink_jax import api, files
from adalink_jax.adapters.load import adapter_folder
from adalink_jax.checkpoints import Adapter, load_adapter
from adalink_jax.errors import UserError
from adalink_jax.notices import load_tasks
from adalink_jax.tools.tables import markdown

MEASURES = ("largest probability", "energy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the adapter, its task, and the tasks whose inputs are strange to it."""
    parser.add_argument("adapter", help="an adapter's folder or its run's")
    parser.add_argument("--base", required=True, help="the base it was trained on")
    parser.add_argument("--task", required=True, help="a task that it was trained on")
    parser.add_argument("--other", nargs="+", required=True, help="tasks it was not trained on")
    parser.add_argument("--split", default="validation", help="the split of all tasks")
    parser.add_argument("--limit", type=int, help="only so many inputs of each, the first ones")
    parser.add_argument("--to", help="a JSON file to write the numbers to as well")


def run(flags: argparse.Namespace) -> None:
    """Prints a line for each other task, and writes the numbers."""
    load_tasks()
    import tasks
    from adalink_jax.data.corpus import check_ready

    for name in (flags.task, *flags.other):
        check_ready(name)
    labels = tuple(tasks.LABELS.get(flags.task, ()))
    if len(labels) < 2:
        raise UserError(f"{flags.task} has no labels, whose scores could tell inputs apart")
    adapter = load_adapter(adapter_folder(flags.adapter))
    route = flags.task if len(adapter.route_names) > 1 else None
    own, *others = (
        _sureness(adapter, flags, name, labels, route) for name in (flags.task, *flags.other)
    )
    found = {
        name: {
            measure: {"auroc": 100 * auroc(a, b), "fpr95": 100 * fpr95(a, b)}
            for measure, a, b in zip(MEASURES, own, other, strict=True)
        }
        for name, other in zip(flags.other, others, strict=True)
    }
    header = ["other task", "inputs"]
    header += [f"{kind}, {name}" for name in MEASURES for kind in ("AUROC", "FPR95")]
    rows = [
        [name, f"{len(other[0]):,}"]
        + [f"{found[name][m][kind]:.1f}" for m in MEASURES for kind in ("auroc", "fpr95")]
        for name, other in zip(flags.other, others, strict=True)
    ]
    print(f"{flags.task}: {len(own[0]):,} inputs of {flags.split}\n\n{markdown(header, rows)}")
    if flags.to:
        record = {"task": flags.task, "split": flags.split, "inputs": len(own[0]), "others": found}
        files.write_text(flags.to, json.dumps(record, indent=1, sort_keys=True) + "\n")


def _sureness(
    adapter: Adapter, flags: argparse.Namespace, name: str, labels: Sequence[str], route: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both measures [N] of a task's inputs."""
    from adalink_jax.data.corpus import mixture
    from adalink_jax.data.scored import EvalExamples

    lengths = {"inputs": 512, "targets": 64}
    examples = EvalExamples(name, flags.split, lengths, flags.limit)
    vocabulary = mixture(flags.task).vocabulary
    answers = api.predict(
        flags.base, adapter, list(examples.input_texts), labels, route=route, vocabulary=vocabulary
    )
    return measures(np.array([[(one.scores or {})[label] for label in labels] for one in answers]))


def measures(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest probability and the energy [N] of labels' log-likelihoods [N,L]."""
    energy = np.logaddexp.reduce(scores, axis=1)
    return np.exp(scores.max(axis=1) - energy), energy


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    """Returns the probability that one of `own` is larger than one of `other`; ties count half."""
    ranks = scipy.stats.rankdata(np.concatenate([own, other]))[: len(own)]
    return (ranks.sum() - len(own) * (len(own) + 1) / 2) / (len(own) * len(other))


def fpr95(own: np.ndarray, other: np.ndarray) -> float:
    """Returns the share of `other` that is at least as large as 95 % of `own` are."""
    accepted = np.sort(own)[::-1][math.ceil(0.95 * len(own)) - 1]
    return float(np.mean(other >= accepted))
