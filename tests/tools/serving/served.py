"""A service on the mini base, as tests make one."""

import tasks
from adalink_jax.tools.serving.engine import FLOAT32, Engine
from adalink_jax.tools.serving.service import Limits, Service
from adalink_jax.tools.serving.shelf import Shelf

LIMITS = Limits(inputs=32)


def served(
    base,
    adapters,
    vocabulary=tasks.MINI_VOCABULARY,
    *,
    labels_of=None,
    limits=LIMITS,
    resident=6,
    host_bytes=2**30,
    precision=FLOAT32,
    **sizes,
):
    """Returns a service of a base and a folder of adapters."""
    engine = Engine(str(base), precision, resident=resident, **sizes)
    where = None if adapters is None else str(adapters)
    labels_of = labels_of or {}
    shelf = Shelf(where, engine.config, engine.fingerprint, labels_of, host_bytes)
    return Service(engine, shelf, vocabulary, labels_of, limits)
