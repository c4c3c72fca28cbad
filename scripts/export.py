"""Writes an adaptation for other frameworks: a folded model, PEFT's adapter, portable programs."""

import argparse
import pathlib
import sys

# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.adapters import export  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="the adapter's folder or its run's")
    parser.add_argument("--base", required=True, help="the base it was trained on")
    parser.add_argument("--to", required=True, help="the folder to write; never overwritten")
    parser.add_argument(
        "--format",
        required=True,
        choices=export.FORMATS,
        help="huggingface, t5x: base and adapter folded into one model; peft: LoRA or a prompt; "
        "stablehlo: encode, score and greedy as programs that jax alone runs",
    )
    parser.add_argument("--route", help="which route, by name, of an adapter with several")
    sys.exit(export.main(**vars(parser.parse_args())))
