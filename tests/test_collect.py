"""Runs side by side: CSV, table and plot of made-up runs."""

import csv
import json

import pytest

from adalink_jax import collect


@pytest.fixture
def runs(tmp_path):
    """Two ranks × two seeds of one task."""
    folders = []
    for rank in (1, 4):
        for seed in (0, 1):
            run = tmp_path / f"rank{rank}" / f"seed{seed}"
            (run / "adapter").mkdir(parents=True)
            contents = {
                "run.json": {"configuration": {"seed": seed}},
                "results.json": {
                    "step": 9,
                    "tasks": {
                        "t": {
                            "score": 50.0 + rank + seed,
                            "splits": {"validation": {"metrics": {"accuracy": 50.0 + rank + seed}}},
                        }
                    },
                },
                "adapter/adapter.json": {
                    "method": "adalink",
                    "settings": {"rank": rank},
                    "tensors": {
                        "down": {"shape": [1, 8, rank]},
                        "up": {"shape": [1, rank, 8]},
                    },
                },
            }
            for name, content in contents.items():
                (run / name).write_text(json.dumps(content))
            folders.append(str(run))
    return folders


def test_csv_table_and_plot(runs, tmp_path, capsys):
    assert collect.main(runs, tmp_path / "all.csv", tmp_path / "rank.png") == 0
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["rank"], r["seed"], r["trainable"], r["score"]) for r in rows] == [
        ("1", "0", "16", "51.0"),
        ("1", "1", "16", "52.0"),
        ("4", "0", "64", "54.0"),
        ("4", "1", "64", "55.0"),
    ]
    assert rows[0]["validation/accuracy"] == "51.0"
    table = capsys.readouterr().out
    assert "51.50 ± 0.71" in table and "54.50 ± 0.71" in table
    assert (tmp_path / "rank.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unfinished_run_is_named(runs, tmp_path, capsys):
    (tmp_path / "rank1" / "seed0" / "results.json").unlink()
    assert collect.main(runs, tmp_path / "all.csv") == 2
    assert "results.json is missing" in capsys.readouterr().err
