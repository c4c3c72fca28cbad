"""Does a training step fit on a TPU slice: compiled for it on any machine, before it is rented.

python scripts/plan.py --model t5_1_1_xxl --method adalink --topology v5e:4x8 --remat full
python scripts/plan.py --model t5_1_1_xl --topology v5e:2x2 --topology v6e:1x1 --to plans/xl
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.
# Before jax is imported: libtpu compiles without looking for a TPU, in several processes at once.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_ACCELERATOR_TYPE="v5litepod-1",  # Only so that it does not warn that there is none.
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_STDERR_LOG_LEVEL="3",
    TPU_MIN_LOG_LEVEL="3",
)
# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.tools.planning import command  # noqa: E402

if __name__ == "__main__":
    sys.exit(command.main(__doc__))
