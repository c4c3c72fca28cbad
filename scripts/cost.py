"""What each method costs on each model: parameters, operations, memory, time; and budgets.

python scripts/cost.py --model t5_1_1_xl --batch 32 --inputs 512 --targets 16 --to runs/cost
python scripts/cost.py --model mini --method adalink:RANK=16 --method full --compile --measure
python scripts/cost.py --model flan_t5_base --budget 65536
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.
# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.tools.cost import command  # noqa: E402

if __name__ == "__main__":
    sys.exit(command.main(__doc__))
