"""Tasks of images from small copies of the official files, made here."""

import collections
import json

import numpy as np
import pytest
import seqio

import tasks
from tasks.image_files import easy_vqa, most_frequent

ANSWERS = ["a dog", *["dog"] * 4, *["puppy"] * 4, ""]


def karpathy(*images, **more):
    """Images are (split, name, captions)."""
    return {
        "images": [
            {"split": split, "filename": name, "sentences": [{"raw": t} for t in captions], **more}
            for split, name, captions in images
        ]
    }


COCO = karpathy(
    ("train", "COCO_train2014_1.jpg", ["A dog.", " A  brown\ndog. "]),
    ("restval", "COCO_train2014_2.jpg", ["A cat."]),
    ("val", "COCO_train2014_3.jpg", ["A bus.", "A red bus."]),
    ("test", "COCO_train2014_4.jpg", ["Rain."]),
    filepath="train2014",
)
QUESTIONS = {
    "questions": [
        {"image_id": 7, "question": "What is\n it?", "question_id": 70},
        {"image_id": 8, "question": "How many?", "question_id": 80},
    ]
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 80, "answers": [{"answer": "2 "}] * 10},
        {"question_id": 70, "answers": [{"answer": answer} for answer in ANSWERS]},
    ]
}


def textcaps(*captions):
    return {"data": [{"image_id": i, "caption_str": c, "caption_id": 0} for i, c in captions]}


def answered(question, answers, **more):
    return {"data": [{"question": question, "answers": answers, **more}]}


FILES = {
    "coco/dataset_coco.json": COCO,
    "flickr8k/dataset_flickr8k.json": karpathy(("train", "a.jpg", ["One .", "Two ."])),
    "flickr30k/dataset_flickr30k.json": karpathy(("val", "b.jpg", ["Three.", "Four."])),
    "textcaps/TextCaps_0.1_train.json": textcaps(("x", "A sign."), ("x", "A stop sign.")),
    "textcaps/TextCaps_0.1_val.json": textcaps(("y", "A book."), ("z", "Tea."), ("y", "Books.")),
    "textcaps/TextCaps_0.1_test.json": {"data": [{"image_id": "w"}]},
    "okvqa/OpenEnded_mscoco_train2014_questions.json": QUESTIONS,
    "okvqa/mscoco_train2014_annotations.json": ANNOTATIONS,
    "vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json": QUESTIONS,
    "vqa_v2/v2_mscoco_val2014_annotations.json": ANNOTATIONS,
    "vqa_v2/v2_OpenEnded_mscoco_test-dev2015_questions.json": QUESTIONS,
    "textvqa/TextVQA_0.5.1_val.json": answered("Which brand?", ANSWERS, image_id="y"),
    "textvqa/TextVQA_0.5.1_test.json": {"data": [{"question": "Which?", "image_id": "w"}]},
    "stvqa/train_task_3.json": answered("Where?", ["Main St", "main"], file_path="coco-text/c.jpg"),
    "docvqa/val_v1.0.json": answered("Date?", ["1/8/93"], image="documents/d.png"),
    "easy_vqa/train/questions.json": [["is it red?", "yes", 0]],
    "easy_vqa/test/questions.json": [["what shape is it?", "circle", 5]],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    monkeypatch.setenv("IMAGE_DIR", str(tmp_path))
    return tmp_path


def examples(name, split):
    """Returns (inputs, targets, image, references) as the task's text format has them."""
    task = seqio.TaskRegistry.get(name)
    dataset = task.preprocessors[0](task.source.get_dataset(split, shuffle=False))
    return [
        (
            one["inputs"].decode(),
            one["targets"].decode(),
            one["image"].decode(),
            [text.decode() for text in one["references"]],
        )
        for one in dataset.as_numpy_iterator()
    ]


DOGS = ["A dog.", "A brown dog."]


@pytest.mark.parametrize(
    "name, split, expected",
    [
        ("caption_coco", "train", [
            ("coco caption:", "A dog.", "coco/train2014/COCO_train2014_1.jpg", DOGS),
            ("coco caption:", "A brown dog.", "coco/train2014/COCO_train2014_1.jpg", DOGS),
            ("coco caption:", "A cat.", "coco/train2014/COCO_train2014_2.jpg", ["A cat."]),
        ]),
        ("caption_coco", "validation", [
            ("coco caption:", "A bus.", "coco/train2014/COCO_train2014_3.jpg",
             ["A bus.", "A red bus."]),
        ]),
        ("caption_flickr8k", "train", [
            ("flickr8k caption:", "One .", "flickr8k/images/a.jpg", ["One .", "Two ."]),
            ("flickr8k caption:", "Two .", "flickr8k/images/a.jpg", ["One .", "Two ."]),
        ]),
        ("caption_flickr30k", "validation", [
            ("flickr30k caption:", "Three.", "flickr30k/images/b.jpg", ["Three.", "Four."]),
        ]),
        ("caption_textcaps", "validation", [
            ("textcaps caption:", "A book.", "textvqa/train_images/y.jpg", ["A book.", "Books."]),
            ("textcaps caption:", "Tea.", "textvqa/train_images/z.jpg", ["Tea."]),
        ]),
        ("caption_textcaps", "test", [
            ("textcaps caption:", tasks.UNLABELED, "textvqa/test_images/w.jpg", []),
        ]),
        ("vqa_okvqa", "train", [
            ("okvqa question: What is it?", "dog",
             "coco/train2014/COCO_train2014_000000000007.jpg", ANSWERS),
            ("okvqa question: How many?", "2",
             "coco/train2014/COCO_train2014_000000000008.jpg", ["2"] * 10),
        ]),
        ("vqa_v2", "test-dev", [
            ("vqa question: What is it?", tasks.UNLABELED,
             "coco/test2015/COCO_test2015_000000000007.jpg", []),
            ("vqa question: How many?", tasks.UNLABELED,
             "coco/test2015/COCO_test2015_000000000008.jpg", []),
        ]),
        ("vqa_textvqa", "validation", [
            ("textvqa question: Which brand?", "dog", "textvqa/train_images/y.jpg", ANSWERS),
        ]),
        ("vqa_textvqa", "test", [
            ("textvqa question: Which?", tasks.UNLABELED, "textvqa/test_images/w.jpg", []),
        ]),
        ("vqa_stvqa", "train", [
            ("stvqa question: Where?", "Main St", "stvqa/coco-text/c.jpg", ["Main St", "main"]),
        ]),
        ("vqa_docvqa", "validation", [
            ("docvqa question: Date?", "1/8/93", "docvqa/documents/d.png", ["1/8/93"]),
        ]),
        ("vqa_easy", "test", [
            ("easy_vqa question: what shape is it?", "circle", "easy_vqa/test/images/5.png",
             ["circle"]),
        ]),
    ],
)  # fmt: skip
def test_examples(folder, name, split, expected):
    assert examples(name, split) == expected


def test_splits_are_those_whose_files_are_there(folder):
    assert tasks.available_splits("caption_coco") == ("train", "validation", "test")
    assert tasks.available_splits("vqa_okvqa") == ("train",)
    assert tasks.available_splits("vqa_v2") == ("validation", "test-dev")
    assert tasks.available_splits("vqa_docvqa") == ("validation",)
    assert tasks.available_splits("vqa_easy") == ("train", "test")
    # The name of today's download stands before that of the first one.
    newer = answered("Newer?", ["yes"], image="d.png")
    (folder / "docvqa/val_v1.0_withQT.json").write_text(json.dumps(newer))
    assert examples("vqa_docvqa", "validation")[0][0] == "docvqa question: Newer?"


def test_a_file_without_splits_is_divided_by_names(folder):
    rows = [f'{name}.jpg,"A dog, {name} ."\n{name}.jpg,Two .\n' for name in range(100)]
    (folder / "flickr8k/captions.txt").write_text("image,caption\n" + "".join(rows))
    images = {
        split: {one[2] for one in examples("caption_flickr8k_hashed", split)}
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, images.values())) == 100 == len(set().union(*images.values()))
    assert len(images["validation"]) == pytest.approx(10, abs=6)
    assert len(images["test"]) == pytest.approx(10, abs=6)
    first = examples("caption_flickr8k_hashed", "test")[0]
    number = first[2].removesuffix(".jpg").rpartition("/")[2]
    assert first[0] == "flickr8k caption:" and first[3] == [f"A dog, {number} .", "Two ."]


def test_most_frequent_answer():
    assert most_frequent(["b", "a", "a", "b", "c"]) == "b"
    assert most_frequent(["", "", "x"]) == "x"


def test_identity_and_counts(folder):
    source = seqio.TaskRegistry.get("vqa_okvqa").source
    assert source.num_input_examples("train") == 2
    identity = tasks.source_identity("vqa_okvqa", "train")
    assert str(folder) not in json.dumps(identity)
    path = folder / "okvqa/mscoco_train2014_annotations.json"
    path.write_text(path.read_text().replace("puppy", "hound"))
    assert tasks.source_identity("vqa_okvqa", "train") != identity
    shards = [
        list(source.get_dataset("train", shuffle=False, shard_info=seqio.ShardInfo(i, 2)))
        for i in range(2)
    ]
    assert [len(shard) for shard in shards] == [1, 1]


def test_mixtures(folder):
    mixture = seqio.MixtureRegistry.get("caption_proportional")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {"caption_coco": 3, "caption_textcaps": 2}
    names = {task.name for task in seqio.MixtureRegistry.get("vqa_proportional").tasks}
    assert names == {"vqa_okvqa", "vqa_textvqa", "vqa_stvqa", "vqa_docvqa"}


def _error(name, split) -> str:
    with pytest.raises(tasks.DataError) as caught:
        seqio.TaskRegistry.get(name).source.get_dataset(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FAULTS = [
    ("caption_coco", "train", "coco/dataset_coco.json", '{"images": [}', ":1: not JSON"),
    ("caption_coco", "train", "coco/dataset_coco.json", b'{"\xff": 1}', ": not UTF-8 text"),
    ("caption_coco", "train", "coco/dataset_coco.json", {"info": 1},
     ": no 'images'; it has info"),
    ("caption_coco", "train", "coco/dataset_coco.json", {"images": {}},
     ": images is {}; expected a list"),
    ("caption_coco", "train", "coco/dataset_coco.json", {"images": [{"split": "train"}]},
     ": images[0] has no 'filename'; it has split"),
    ("caption_coco", "train", "coco/dataset_coco.json", karpathy(("train", "a", ["x", " "])),
     ": images[0].sentences[1].raw is ' '; expected a text that is not empty"),
    ("caption_coco", "train", "coco/dataset_coco.json", karpathy(("train", "a", [])),
     ": images[0].sentences is []; expected captions"),
    ("caption_coco", "test", "coco/dataset_coco.json", karpathy(("train", "a", ["x"])),
     ": no examples of split 'test' of caption_coco"),
    ("vqa_okvqa", "train", "okvqa/mscoco_train2014_annotations.json", {"annotations": []},
     "questions[0].question_id is 70; expected a question with answers in"),
    ("vqa_okvqa", "train", "okvqa/OpenEnded_mscoco_train2014_questions.json",
     {"questions": [{"image_id": "7"}]},
     ": questions[0].image_id is '7'; expected a whole number"),
    ("vqa_docvqa", "validation", "docvqa/val_v1.0.json",
     answered("Date?", [""], image="d.png"), ": data[0].answers is ['']; expected answers"),
    ("vqa_stvqa", "train", "stvqa/train_task_3.json",
     answered("Where?", ["x"]), ": data[0] has no 'file_path'; it has question, answers"),
    ("vqa_easy", "train", "easy_vqa/train/questions.json", [["q", "yes"]],
     ": [0] is ['q', 'yes']; expected [question, answer, number of the picture]"),
    ("caption_flickr8k_hashed", "train", "flickr8k/captions.txt", "a,b\n",
     ":1: the header is ['a', 'b']; expected image,caption"),
    ("caption_flickr8k_hashed", "train", "flickr8k/captions.txt",
     "image,caption\na.jpg,A dog\nb.jpg\n", ":3: ['b.jpg']; expected image,caption"),
]  # fmt: skip


@pytest.mark.parametrize("name, split, file, content, message", FAULTS)
def test_faults_are_named(folder, name, split, file, content, message):
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    content = content.encode() if isinstance(content, str) else content
    (folder / file).write_bytes(content)
    found = _error(name, split)
    assert message in found and found.startswith(str(folder / file).split("mscoco")[0][:20])


def test_missing_folders_and_files(folder, monkeypatch):
    assert _error("vqa_okvqa", "validation") == (
        f"{folder}/okvqa/OpenEnded_mscoco_val2014_questions.json: no such file for split "
        "'validation' of vqa_okvqa"
    )
    assert _error("vqa_okvqa", "dev") == "vqa_okvqa has no split 'dev'; it has train, validation"
    monkeypatch.setenv("IMAGE_DIR", str(folder / "coco"))
    assert _error("vqa_docvqa", "train") == (
        f"IMAGE_DIR={folder}/coco: no folder {folder}/coco/docvqa; vqa_docvqa is read from there, "
        "with train_v1.0_withQT.json"
    )
    monkeypatch.delenv("IMAGE_DIR")
    assert _error("vqa_okvqa", "train").startswith(
        "IMAGE_DIR is not set; vqa_okvqa is read from its folder 'okvqa', with OpenEnded"
    )


def test_references_reach_seqios_metrics(folder):
    """SeqIO itself calls `postprocess_fn` with the example, and metrics with what comes of it."""
    task = seqio.TaskRegistry.get("caption_coco")
    source = task.source.get_dataset("validation", shuffle=False)
    (example,) = task.preprocessors[0](source).as_numpy_iterator()
    target = task.postprocess_fn("A bus.", example=example, is_target=True)
    prediction = task.postprocess_fn("A bus.", example=example, is_target=False)
    assert target == ["A bus.", "A red bus."] and prediction == "A bus."
    assert tasks.references("alone", example={}, is_target=True) == ["alone"]
    (cider,) = (one for one in task.predict_metric_fns if one.__name__ == "cider")
    assert cider([target], [prediction]) == {"cider": 0.0}


@pytest.mark.slow
def test_easy_vqa_as_published(shared_data):
    """The whole data set, and what a model scores on it that sees questions alone."""
    folder = shared_data / "vqa" / "easy_vqa"
    train, test = (
        easy_vqa([str(folder / split / "questions.json")], split) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (38_575, 9_673)
    assert {one.target for one in train} == set(tasks.LABELS["vqa_easy"])
    by_question = collections.defaultdict(list)
    for one in train:
        by_question[one.text].append(one.target)
    blind = {question: most_frequent(answers) for question, answers in by_question.items()}
    right = np.mean([blind[one.text] == one.target for one in test])
    assert right == pytest.approx(0.670, abs=5e-4)
    assert (shared_data / "vqa" / test[0].image).exists()
