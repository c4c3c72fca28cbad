"""Tables and numbers as the tools write them."""

import csv
import io

import pytest

from adalink_jax.tools import tables


def test_columns_of_numbers_stand_to_the_right_and_bars_are_escaped():
    text = tables.markdown(("method", "base", "score"), [("a|b", "t5", "1"), ("c", "", "2")], 2)
    assert text == (
        "| method | base | score |\n| --- | --- | ---: |\n| a\\|b | t5 | 1 |\n| c |  | 2 |"
    )


def test_csv_has_its_columns_only():
    rows = [{"a": 'with "quotes", and commas', "b": 1, "other": 2}, {"a": "é\nx"}]
    text = tables.csv_text(["a", "b"], rows)
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert found == [{"a": rows[0]["a"], "b": "1"}, {"a": "é\nx", "b": ""}]
    assert "\r" not in text


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (-3 * 2**20, "-3.00 MiB"),
        (15.75 * 2**30, "15.75 GiB"),
        (2**41, "2,048.00 GiB"),
    ],
)
def test_bytes_have_binary_units(count, expected):
    assert tables.in_bytes(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (2.6e12, "2.6 T"), (3e19, "3e+04 P")],
)
def test_counts_have_decimal_units(count, expected):
    assert tables.in_thousands(count) == expected
