"""Multi-task mixtures of GLUE, and their mixing rates.

`glue_proportional` draws each task in proportion to its number of training examples, up to
`DEFAULT_CAP`, which is T5's. No GLUE task has that many, so all examples are seen equally often, as
in T5's GLUE mixture. To favor small tasks, register a mixture with a lower cap:

    rate = tasks.proportional_rate(10_000)
    seqio.MixtureRegistry.add("my_glue", tasks.GLUE_TASKS, default_rate=rate)

`glue_equal` draws every task equally often. `glue_equal_2` and `glue_equal_4` contain only GLUE's
first tasks, to study the effect of the number of tasks. Rates are computed when a mixture is
opened, from the data that is present; importing this module reads nothing.
"""

from collections.abc import Callable, Sequence

import seqio

from tasks.errors import DataError
from tasks.glue import GLUE_TASKS, train_examples

DEFAULT_CAP = 2**19


def proportional_rate(cap: int = DEFAULT_CAP) -> Callable[[seqio.Task], float]:
    """Returns a mixing rate: a task's number of training examples, at most `cap`.

    Examples in the current GLUE folder are counted, so a subset of a task counts with its own size.
    For TFDS the official counts are used, as in T5.

    Args:
      cap: the largest rate, in examples.

    Returns:
      A function of a task, as used by SeqIO's mixtures.

    Raises:
      ValueError: `cap` is below 1.
      DataError: raised by the returned function, if the number of examples is unknown.
    """
    if cap < 1:
        raise ValueError(f"a mixture's cap is a number of examples, at least 1; got {cap}")

    def rate(task: seqio.Task) -> float:
        count = train_examples(task)
        if not count:
            raise DataError(
                f"the number of training examples of '{task.name}' is not known, so it cannot be "
                "mixed in proportion; give its source num_input_examples, or a rate of its own"
            )
        return float(min(count, cap))

    return rate


def add_equal_mixtures(name: str, tasks: Sequence[str]) -> None:
    """Registers a mixture of tasks drawn equally often, and name_2, name_4, … of the first ones."""
    count = 2
    while count < len(tasks):
        seqio.MixtureRegistry.add(f"{name}_{count}", tasks[:count], default_rate=1.0)
        count *= 2
    seqio.MixtureRegistry.add(name, tasks, default_rate=1.0)


seqio.MixtureRegistry.add("glue_proportional", GLUE_TASKS, default_rate=proportional_rate())
add_equal_mixtures("glue_equal", GLUE_TASKS)
