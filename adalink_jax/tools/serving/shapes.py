"""Shapes of calls, rounded up so that few programs are compiled.

The rows of a call are rounded to a power of four; the tokens of a text and of a label, and the
number of labels, to a power of two.
"""

from collections.abc import Callable

SHORTEST_TEXT = 16
SHORTEST_LABEL = 4


def rounded(count: int, least: int) -> int:
    """Returns the next power of two, and at least `least`."""
    return max(least, 1 << (count - 1).bit_length())


def rounded_rows(count: int, most: int) -> int:
    """Returns a number of rows that few calls have: a power of four, or all that fit."""
    return min(most, 1 << (-(-(count - 1).bit_length() // 2) * 2))


def row_counts(most: int) -> list[int]:
    """Returns all numbers of rows that `rounded_rows` gives."""
    return sorted({rounded_rows(count, most) for count in range(1, most + 1)})


def divided(count: int, most: int, seconds: Callable[[int], float]) -> list[int]:
    """Returns the rows of calls that together answer `count` rows soonest, the largest first.

    Args:
      count: how many rows there are, at least one. The last call may have fewer than its rows.
      most: the most rows of one call.
      seconds: a call's time by its rows, one of `row_counts(most)`.
    """
    # Of equals the largest call, which comes first.
    costs = {size: seconds(size) for size in reversed(row_counts(most))}
    # The shortest total for each number of rows, and the rows of its first call.
    best, first = [0.0], [0]
    for rows in range(1, count + 1):
        totals = {size: cost + best[max(0, rows - size)] for size, cost in costs.items()}
        size = min(totals, key=totals.__getitem__)
        best.append(totals[size])
        first.append(size)
    sizes = []
    while count > 0:
        sizes.append(first[count])
        count -= first[count]
    return sorted(sizes, reverse=True)


def lengths(most: int) -> list[int]:
    """Returns all lengths of texts that `rounded` gives, none of them above `most`."""
    found = [SHORTEST_TEXT]
    while found[-1] < most:
        found.append(2 * found[-1])
    return [min(most, length) for length in found]
