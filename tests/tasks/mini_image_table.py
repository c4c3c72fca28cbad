"""The table of `scripts/image_experiment.sh`: scores with intervals over examples.

    PYTHONPATH=. python tests/tasks/mini_image_table.py OUT/runs FOLDER

FOLDER/scores.csv has a line for each run, FOLDER/scores.md the means over seeds. An interval is the
mean ± 1.96 standard errors over examples (of an example's mean over seeds), which is what other
examples of the same kind could change. It does not cover other seeds.
"""

import collections
import csv
import io
import json
import pathlib
import sys

import numpy as np

from tasks import caption_metrics, ptb, vqa_metrics


def by_example(task: str, run: pathlib.Path) -> np.ndarray:
    """Returns the score of each prediction, whose mean is what the run recorded; float64 [N]."""
    text = (run / f"predictions/{task}-validation.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n") if line]
    if task in ("mini_coco", "mini_textcaps"):
        references = [[ptb.tokens(text) for text in line["references"]] for line in lines]
        said = [ptb.tokens(line["prediction"]) for line in lines]
        scores = 100 * np.array(caption_metrics.cider_d(references, said))
    else:
        one = [([line["references"]], [line["prediction"]]) for line in lines]
        scores = np.array([next(iter(vqa_metrics.soft_accuracy(*each).values())) for each in one])
    recorded = json.loads((run / "results.json").read_text())["tasks"][task]["score"]
    np.testing.assert_allclose(scores.mean(), recorded, atol=1e-4)
    return scores


def main(runs: pathlib.Path, to: pathlib.Path) -> None:
    """Writes both tables."""
    lines, cells = [], collections.defaultdict(list)
    for results in sorted(runs.rglob("results.json")):
        parts = results.parent.relative_to(runs).parts
        base, method, task, seed = (parts[1], "frozen", parts[2], "") if len(parts) == 3 else parts
        scores = by_example(f"mini_{task}", results.parent)
        cells[base, method, task].append(scores)
        lines.append((base, method, task, seed.removeprefix("seed"), round(scores.mean(), 2)))
    tasks = sorted({task for _, _, task in cells}, reverse=True)
    columns = [(base, task) for base in ("mini_images_raw", "mini_images") for task in tasks]
    table = "| method | " + " | ".join(f"{base}, {task}" for base, task in columns) + " |\n"
    table += "|---|" + "---:|" * len(columns) + "\n"
    for method in dict.fromkeys(method for _, method, _ in cells):
        row = []
        for base, task in columns:
            found = cells.get((base, method, task))
            mean = np.mean(found, 0) if found else np.zeros(2)
            shown = f"{mean.mean():.1f} ± {1.96 * mean.std(ddof=1) / len(mean) ** 0.5:.1f}"
            row.append(f"{shown} ({len(found)})" if found else "")
        table += f"| {method} | " + " | ".join(row) + " |\n"
    to.mkdir(parents=True, exist_ok=True)
    (to / "scores.md").write_text(table, encoding="utf-8")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("base", "method", "task", "seed", "score")])
    csv.writer(text, lineterminator="\n").writerows(lines)
    (to / "scores.csv").write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
