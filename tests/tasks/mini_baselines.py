"""What mini-GLUE's tasks give away to length and to counting words.

As a program it prints the table: `PYTHONPATH=. python tests/tasks/mini_baselines.py`.

Three baselines: the majority label (of scores, their mean), a linear model of the texts' lengths,
and a linear model of the words of each text, of both texts, and of one alone.
"""

import numpy as np
import scipy.stats
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from tasks import glue, mini_glue


def _texts(name: str, columns: dict) -> list[list[str]]:
    return [columns[field].tolist() for field in glue.FORMATS[name].fields]


def _lengths(texts: list[list[str]]) -> np.ndarray:
    counts = np.array([[len(text.split()) for text in side] for side in texts], float).T
    return np.hstack([counts, counts[:, :1] - counts[:, -1:]])


def _marked(texts: list[list[str]]) -> list[str]:
    """Every word with where it is: in which text, in both, in one alone."""
    marked = []
    for sides in zip(*texts, strict=True):
        words = [side.split() for side in sides]
        found = [f"{i}:{word}" for i, side in enumerate(words) for word in side]
        if len(words) == 2:
            first, second = map(set, words)
            found += [f"both:{word}" for word in first & second]
            found += [f"first:{word}" for word in first - second]
            found += [f"second:{word}" for word in second - first]
            sizes = (("both", first & second), ("either", first ^ second))
            found += [f"number:{kind}" for kind, group in sizes for _ in group]
        marked.append(" ".join(found))
    return marked


def _score(name: str, train_x, train_y, x, y) -> float:
    if name == "stsb":
        predictions = Ridge(alpha=10.0).fit(train_x, train_y).predict(x)
        return 0.0 if np.ptp(predictions) == 0 else scipy.stats.pearsonr(y, predictions)[0]
    model = LogisticRegression(max_iter=3000, C=0.1)
    return model.fit(train_x, train_y).score(x, y)


def baselines(name: str) -> dict[str, float]:
    """Validation scores of the baselines: accuracy, and Pearson's correlation of stsb."""
    train, validation = (mini_glue.SOURCES[name].columns(s) for s in ("train", "validation"))
    labels = train["label"], validation["label"]
    most = 0.0
    if name != "stsb":
        values, counts = np.unique(labels[0], return_counts=True)
        most = np.mean(labels[1] == values[np.argmax(counts)])
    texts = _texts(name, train), _texts(name, validation)
    counter = CountVectorizer(token_pattern=r"\S+", lowercase=False)
    words = [counter.fit_transform(_marked(texts[0])), counter.transform(_marked(texts[1]))]
    lengths = list(map(_lengths, texts))
    both = [sparse.hstack([w, n]).tocsr() for w, n in zip(words, lengths, strict=True)]
    return {
        "majority": float(most),
        "length": float(_score(name, lengths[0], labels[0], lengths[1], labels[1])),
        "words": float(_score(name, both[0], labels[0], both[1], labels[1])),
    }


if __name__ == "__main__":
    print(f"{'task':<10} {'majority':>9} {'length':>9} {'words':>9}")
    for task in glue.FORMATS:
        scores = baselines(task)
        print(f"{task:<10}", *(f"{100 * score:9.1f}" for score in scores.values()))
