"""Trains many command lines of train.py, from the standard input, in processes side by side.

for seed in 0 1 2; do
    echo --gin_file=experiments/mini_adalink.gin --gin.SEED=$seed --gin.MODEL_DIR=runs/seed$seed \
        --gin.INITIAL_CHECKPOINT_PATH=adalink_jax/bases/mini
done | python scripts/sweep.py --jobs 2

The cores are divided among the processes. On accelerators leave --jobs at 1. Finished runs are left
as they are, and stopped ones go on: run it again after an interruption.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.
sys.path[0] = str(
    pathlib.Path(__file__).resolve().parent.parent
)  # This checkout, installed or not.
sys.path.append(os.getcwd())  # The user's own modules of tasks, which gin files import.

from adalink_jax.tools import sweep  # noqa: E402

if __name__ == "__main__":
    sys.exit(sweep.main(__doc__))
