"""What the image tasks give away to a model that does not look, beside one that sees everything.

As a program it prints the table: `PYTHONPATH=. python tests/tasks/mini_image_baselines.py`.

Without looking, a question gets the most frequent answer of the same question in training, and
every picture the caption that scores best on training pictures. The other column is the target of a
question, and one reference of a picture scored by its other four.
"""

import collections

import seqio

from tasks.mini_images import downstream

_CANDIDATES, _PICTURES = 60, 200  # Captions that are tried, on so many training pictures.


def _columns(name: str, split: str) -> tuple[list[str], list[str], list[list[str]]]:
    columns = downstream.SOURCES[name].columns(split)
    return tuple(columns[key].tolist() for key in ("inputs", "targets", "references"))


def _score(name: str, references, predictions) -> float:
    task = seqio.TaskRegistry.get(name)
    return next(iter(task.metric_fns[0](references, predictions).values()))


def _blind_answers(name: str) -> list[str]:
    by_question = collections.defaultdict(collections.Counter)
    questions, answers, _ = _columns(name, "train")
    for question, answer in zip(questions, answers, strict=True):
        by_question[question][answer] += 1
    most = collections.Counter(answers).most_common(1)
    asked, _, _ = _columns(name, "validation")
    return [(by_question[question].most_common(1) or most)[0][0] for question in asked]


def _blind_captions(name: str) -> list[str]:
    _, captions, references = _columns(name, "train")
    common = [text for text, _ in collections.Counter(captions).most_common(_CANDIDATES)]
    some = references[:_PICTURES]
    best = max(common, key=lambda text: _score(name, some, [text] * len(some)))
    return [best] * len(_columns(name, "validation")[0])


def baselines(name: str) -> tuple[float, float]:
    """Returns the validation scores without looking, and of somebody who sees everything."""
    _, targets, references = _columns(name, "validation")
    if name in downstream.CAPTIONS:
        pairs = zip(references, targets, strict=True)
        others = [[text for text in some if text != target] for some, target in pairs]
        return _score(name, references, _blind_captions(name)), _score(name, others, targets)
    return _score(name, references, _blind_answers(name)), _score(name, references, targets)


if __name__ == "__main__":
    for task in downstream.SOURCES:
        print(f"{task:16}" + "".join(f"{score:8.1f}" for score in baselines(task)))
