"""Fuzz of what is read: each input is right, or refused in one line.

``main`` runs in a process of its own, in a folder with a base. hypothesis draws the inputs, and
reduces one that fails.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import pkgutil
import shutil
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

from adalink_jax import cli
from adalink_jax.errors import UserError
from tests.chaos.alterations import VALUES, altered_bytes, altered_json, altered_tensors

# Reads an input, drawn by its argument; raises `UserError` or `DataError`, or asserts.
Attack = Callable[[Callable], None]

BASE = pathlib.Path("base")


def main(attack: str, seed: str, examples: str) -> None:
    """Prints how many inputs were right and how many were refused, as a line of JSON.

    Args:
      attack: "module:name" of a function that makes an `Attack` in an empty folder.
      seed: hypothesis's.
      examples: number of inputs.
    """
    place = pathlib.Path("attacked").absolute()
    place.mkdir()
    counts = collections.Counter(right=0, refused=0)
    attacked_by = pkgutil.resolve_name(attack)(place)

    @hypothesis.seed(int(seed))
    @hypothesis.settings(
        max_examples=int(examples),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def attacked(data: Any) -> None:
        try:
            attacked_by(data.draw)
            counts["right"] += 1
        except (UserError, *cli._data_errors()) as error:
            message = str(error)
            assert "\n" not in message, message
            message.encode()  # A lone surrogate could not be printed.
            counts["refused"] += 1

    attacked()
    print(json.dumps(counts))


def gin(place: pathlib.Path) -> Attack:
    """Bindings of any name to any value, and altered gin files."""
    from adalink_jax.config import gin_files, macros

    names = sorted({macro.name for macro in macros.macros()})
    names += ["Layout.devices", "Evaluation.limit", "Loss.z_loss", "Periods.log_period", "x.y"]
    values = VALUES.map(repr) | st.text(max_size=9) | st.sampled_from(["@adamw", "%RANK", "1e999"])
    binding = st.builds("{}={}".format, st.sampled_from(names), values)
    shipped = (macros.gin_folder() / "runs" / "finetune.gin").read_bytes()

    def attack(draw):
        files = ["experiments/mini_adalink.gin"]
        if draw(st.booleans()):
            (place / "my.gin").write_bytes(altered_bytes(draw, shipped))
            files.append(str(place / "my.gin"))
        bindings = ["MODEL_DIR=run", "INITIAL_CHECKPOINT_PATH=base"]
        bindings += draw(st.lists(binding, max_size=2))
        supplied = ("configuration",)
        gin_files.build(
            gin_files.read("adalink_jax.runs.train", files, bindings, supplied=supplied)
        )

    return attack


def tsv(place: pathlib.Path) -> Attack:
    """GLUE's files, altered."""
    import seqio

    import tasks  # noqa: F401  (registers them)

    os.environ["GLUE_DIR"] = str(place)
    intact = b"index\tsentence1\tsentence2\tlabel\n0\tA dog.\tAn animal.\tentailment\n"
    intact += b'1\tHe said "no".\tNo\xe2\x80\xa6\tnot_entailment\n'
    (place / "RTE").mkdir()

    def attack(draw):
        for name in ("train.tsv", "dev.tsv"):
            (place / "RTE" / name).write_bytes(altered_bytes(draw, intact))
        for split in ("train", "validation"):
            for example in seqio.TaskRegistry.get("glue_rte").source.get_dataset(split, False):
                example["sentence1"].numpy().decode()

    return attack


def records(place: pathlib.Path) -> Attack:
    """A run's JSON files, altered, before a resume."""
    from adalink_jax.runs.folder import RunFolder

    run = {"configuration": {"seed": 0}, "data": {"name": "x"}, "base": {"fingerprint": "f" * 64}}
    lines = [{"step": step, "train/loss": 1.5} for step in (1, 2, 3)]
    results = {"step": 3, "mode": "greedy", "tasks": {"x": {"validation": {"accuracy": 1.0}}}}

    def altered(draw, value) -> bytes:
        if draw(st.booleans()):
            value = draw(VALUES) if draw(st.booleans()) else altered_json(draw, value)
        content = json.dumps(value).encode()
        return altered_bytes(draw, content) if draw(st.booleans()) else content

    def attack(draw):
        shutil.rmtree(place)
        place.mkdir()
        (place / "run.json").write_bytes(altered(draw, {**run, "starts": [{"step": 0}]}))
        (place / "results.json").write_bytes(altered(draw, results))
        content = b"".join(altered(draw, line) + b"\n" for line in lines)
        (place / "metrics.jsonl").write_bytes(content)
        with contextlib.closing(RunFolder(place)) as folder:
            for part, value in run.items():
                folder.claim(part, value)
            folder.is_finished(7)
            folder.start("", 2)
        kept = (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(json.loads(line)["step"] <= 2 for line in kept), kept

    return attack


def safetensors(place: pathlib.Path) -> Attack:
    """A Hugging Face base whose header lies: all arrays in their shapes, or none."""
    from adalink_jax.checkpoints import load_base, open_base, save_base

    save_base(place / "base", open_base(str(BASE)), "huggingface")
    (path,) = (place / "base").glob("*.safetensors")
    (place / "base" / "SHA256SUMS").unlink()  # What is checked behind it is attacked.
    intact = path.read_bytes()

    def attack(draw):
        path.write_bytes(altered_tensors(draw, intact))
        load_base(place / "base")

    return attack


def msgpack(place: pathlib.Path) -> Attack:
    """T5X's index, altered."""
    from adalink_jax.checkpoints import load_base, open_base, save_base

    save_base(place / "base", open_base(str(BASE)), "t5x")
    (place / "base" / "SHA256SUMS").unlink()
    (path,) = (place / "base").rglob("checkpoint")
    intact = path.read_bytes()

    def attack(draw):
        path.write_bytes(altered_bytes(draw, intact))
        load_base(place / "base")

    return attack


def adapter(place: pathlib.Path) -> Attack:
    """An adapter's record and tensors, altered: the same adapter, or none."""
    import jax
    import numpy as np

    from adalink_jax.checkpoints import load_adapter, open_base, save_adapter

    tree = {"encoder": {"adalink": {"down": np.ones((1, 16, 4), np.float32)}}}
    save_adapter(
        place / "adapter", tree, method_name="adalink", settings={"rank": 4},
        architecture=open_base(str(BASE)).config, base_fingerprint="f" * 64, route_names=["all"],
        metadata={"train_steps": 3},
    )  # fmt: skip
    files = [place / "adapter" / name for name in ("adapter.json", "adapter.safetensors")]
    record, tensors = (path.read_bytes() for path in files)
    before = load_adapter(place / "adapter")

    def attack(draw):
        contents = [record, tensors]
        match draw(st.sampled_from(["json", "bytes", "tensors", "digest"])):
            case "json":
                contents[0] = json.dumps(altered_json(draw, json.loads(record))).encode()
            case "bytes":
                which = draw(st.integers(0, 1))
                contents[which] = altered_bytes(draw, contents[which])
            case "tensors":
                contents[1] = altered_tensors(draw, tensors)
            case _:  # What is behind the hash.
                contents[1] = altered_tensors(draw, tensors)
                digest = hashlib.sha256(contents[1]).hexdigest()
                contents[0] = json.dumps({**json.loads(record), "sha256": digest}).encode()
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)
        found = load_adapter(place / "adapter")
        if contents[1] == tensors:
            jax.tree.map(np.testing.assert_array_equal, found.tree, before.tree)
            if "sha256" in json.loads(contents[0]):
                assert found.method == before.method, (found.method, before.method)

    return attack


def request(place: pathlib.Path) -> Attack:
    """Lines of a stream: each has an answer in strict JSON, and good ones have the right one."""
    import tasks
    from adalink_jax.tools.serving import command
    from adalink_jax.tools.serving.service import Limits
    from tests.tools.serving.served import served

    service = served(BASE, None, labels_of=tasks.LABELS, limits=Limits(inputs=16, targets=4))
    good = b'{"text": "a film", "labels": ["good", "bad"], "id": 1}'
    (expected,) = command._answers(service, [(1, good)], False, 1)

    def attack(draw):
        match draw(st.sampled_from(["bytes", "json", "value", "noise"])):
            case "bytes":
                bad = altered_bytes(draw, good)
            case "json":
                bad = json.dumps(altered_json(draw, json.loads(good))).encode()
            case "value":
                bad = json.dumps(draw(VALUES)).encode()
            case _:
                bad = draw(st.binary(max_size=20))
        lines = [(1, good), (2, bad.replace(b"\n", b" ")), (3, good)]
        first, answer, last = command._answers(service, lines, False, 1)
        assert first == expected and last == {**expected, "line": 3}
        json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
        if "error" in answer:
            raise UserError(answer["error"])

    return attack
