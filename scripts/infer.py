"""Answers requests with many adapters of one base, batched together.

    python scripts/infer.py --base BASE --adapters RUNS --vocabulary spiece.model < requests.jsonl

A request is a line: {"text": "rte sentence1: …", "adapter": "rte"}, and at will "labels" to choose
among and an "id" to repeat; or, in a *.tsv file, text<TAB>adapter. Without an adapter the base
answers. An adapter is a folder below --adapters, read when it is first asked for and again when it
was written anew; NAME:ROUTE asks for one task of a multi-task adapter. An answer is a line too:
the prediction, and each label's log-likelihood; or the error of that line alone.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.
# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.tools.serving import command  # noqa: E402

if __name__ == "__main__":
    sys.exit(command.main(__doc__))
