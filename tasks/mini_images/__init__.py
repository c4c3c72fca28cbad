"""A small world of pictures: six tasks of the paper's kinds, and what two bases are trained on.

Pictures are drawn by NumPy, 32 x 32 pixels in RGB (`drawing`), and show a scene or a document
(`scenes`). Examples name theirs as ``name:index`` in the feature `image`, and have their right
answers in `references` (`albums`). Every meaning is in one of a hundred parts of the world, and
pre-training, the tasks and the splits of each use different parts (`mini_world.PARTS`).

* `mini_image_captions` and `mini_image_questions` are the mixtures of the six tasks (`downstream`).
* `mini_image_raw` is what the raw base is trained on (`raw`), `mini_image_instructions` what the
  tuned base is trained on from there (`tuned`). Their sentences are others (`templates`).

The vocabulary is one of its own (`vocabulary`).
"""

from typing import cast

import seqio

from tasks.caption_metrics import CAPTION_METRICS
from tasks.images import add_image_task
from tasks.metrics import sequence_accuracy
from tasks.mini_images import downstream, raw, tuned
from tasks.mini_images.vocabulary import VOCABULARY
from tasks.pretraining import add_span_corruption
from tasks.registry import EVAL_SPLITS, output_features, text_to_text
from tasks.vqa_metrics import anls, exact_match, soft_accuracy

MINI_IMAGE_TASKS = tuple(downstream.SKILLS)
#: Task → its metrics, the first of which is its score, and that one's name.
METRICS = {
    **dict.fromkeys(downstream.CAPTIONS, (CAPTION_METRICS, "cider")),
    **dict.fromkeys(("mini_okvqa", "mini_textvqa"), ((soft_accuracy,), "vqa_accuracy")),
    **dict.fromkeys(("mini_stvqa", "mini_docvqa"), ((anls, exact_match), "anls")),
}


def add_pairs(name: str, source: seqio.DataSource) -> seqio.Task:
    """Registers a source of `inputs` and `targets`, which is evaluated by generation."""
    EVAL_SPLITS[name] = ("validation",)
    return seqio.TaskRegistry.add(
        name,
        source=cast(seqio.DataSourceInterface, source),  # seqio.DataSource may lack a count.
        preprocessors=text_to_text(None),
        metric_fns=[sequence_accuracy],
        output_features=output_features(VOCABULARY),
    )


for _name, _source in downstream.SOURCES.items():
    _metrics, _score = METRICS[_name]
    add_image_task(_name, _source, None, _metrics, scored_by=_score, vocabulary=VOCABULARY)
for _name, _source in (raw.SOURCES | tuned.SOURCES).items():
    add_pairs(_name, _source)
add_span_corruption(
    "mini_image_text", raw.TEXTS, VOCABULARY, max_tokens=24, density=0.25, mean_span=1.5
)

# Reading and places are the hardest to learn, and texts the easiest.
_RAW_RATES = {"mini_image_read": 2.0, "mini_image_look": 2.0, "mini_image_text": 0.5}
seqio.MixtureRegistry.add(
    "mini_image_raw",
    [(name, _RAW_RATES.get(name, 1.0)) for name in (*raw.SOURCES, "mini_image_text")],
)
seqio.MixtureRegistry.add("mini_image_instructions", list(tuned.SOURCES), default_rate=1.0)
seqio.MixtureRegistry.add("mini_image_captions", downstream.CAPTIONS, default_rate=1.0)
seqio.MixtureRegistry.add("mini_image_questions", downstream.QUESTIONS, default_rate=1.0)
