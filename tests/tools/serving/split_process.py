"""Scores and a text of a base that is split over two devices, or stored in fewer bits, as JSON.

python -m tests.tools.serving.split_process BASE ADAPTERS
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import numpy as np

from adalink_jax.tools.serving.engine import Precision
from adalink_jax.tools.serving.generation import Draw, Table
from adalink_jax.tools.serving.requests import Request
from tests.tools.serving.served import LABELS, SERVER_LIMITS, TEXTS, served

PRECISIONS = {
    "whole": Precision(),
    "split": Precision(model_parallelism=2),
    "bfloat16": Precision("bfloat16", "bfloat16"),
    "int8, split": Precision("bfloat16", "int8", 2),
}

found = {}
for name, precision in PRECISIONS.items():
    service = served(*sys.argv[1:3], limits=SERVER_LIMITS, resident=8, precision=precision)
    requests = [Request(i, TEXTS[0], name, LABELS) for i, name in enumerate((None, "adalink_9"))]
    scores = [list(one["scores"].values()) for one in service.answers(requests)]
    row = service.row(Request(0, TEXTS[0], "adalink_9", scores=False))
    table = Table(service, row.kind)
    (place,) = table.begin([(row, Draw(8))])
    tokens = np.concatenate([table.advance()[place] for _ in range(2)]).tolist()
    found[name] = {"scores": scores, "text": service.text(tokens)}
print(json.dumps(found))
