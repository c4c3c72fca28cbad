"""The commands that are disturbed, in a small world, and what each leaves when it is not."""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence

from tests.chaos.server import End, Server, Start

METHODS = ("adalink", "lora", "prompt_tuning", "full")
# Of a trained run: what equal runs write with equal bytes.
OUTCOME = tuple(
    f"run/{name}" for name in ("adapter/", "predictions/", "metrics.jsonl", "results.json")
)
REQUESTS = [
    {"text": "mini_sst2 sentence: a fine film .", "adapter": "adalink", "id": 1},
    {"text": "mini_sst2 sentence: a dull film .", "adapter": "lora", "labels": ["good", "bad"]},
    {"text": "mini_sst2 sentence: a film .", "adapter": "nobody"},
    {"text": "mini_sst2 sentence: a film ."},
    {"text": 7},
]


@dataclasses.dataclass(frozen=True)
class Job:
    """A command line that runs in a trial's folder, with the files that it reads and leaves there.

    Attributes:
      argv: the command line.
      products: what it leaves: files, and folders with all that is in them.
      reads: what it reads, by its name there: the job that has left it, and its name then.
      stdin: the name of its input, if it has one.
      streams: whether its output may have errors in the place of answers.
    """

    argv: Sequence[str]
    products: Sequence[str]
    reads: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    stdin: str = ""
    streams: bool = False


def _gin(command: str, file: str, **flags) -> list[str]:
    flags = {"INITIAL_CHECKPOINT_PATH": "base", "Data.cache_dir": "cache", **flags}
    # All rows are of one length: one program to trace.
    flags |= {"TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 8}}
    flags |= {"Evaluation.limit": 8, "Evaluation.batch_size": 8}
    values = [f"--gin.{name}={value}" for name, value in flags.items()]
    return [command, f"--gin_file=experiments/{file}.gin", *values]


def _training(method: str, steps: int = 7) -> list[str]:
    periods = {"EVAL_PERIOD": 4, "CHECKPOINT_PERIOD": 3, "Periods.log_period": 2}
    flags = {"TRAIN_STEPS": steps, "BATCH_SIZE": 4, "DROPOUT_RATE": 0.1, **periods}
    return _gin("train", f"mini_{method}", MODEL_DIR="run", **flags)


def _converting(form: str) -> list[str]:
    return ["convert", "--from", "source", "--to", "copy", "--format", form]


_BASE = {"base": ("base", "base")}
_READY = {**_BASE, "cache": ("tokens", "cache")}
_TRAINED = ("train adalink", "run")
JOBS = {
    "base": Job(["tests.chaos.jobs:write_base", "base"], ["base/"]),
    "requests": Job(["tests.chaos.jobs:write_requests", "requests.jsonl"], ["requests.jsonl"]),
    "half": Job(_training("adalink", 4), OUTCOME, _READY),
    # The first also has its texts tokenized; the others find that done.
    "tokens": Job(_training("adalink"), (*OUTCOME, "cache/"), _BASE),
    **{f"train {method}": Job(_training(method), OUTCOME, _READY) for method in METHODS},
    "resume": Job(_training("adalink"), OUTCOME, {**_READY, "run": ("half", "run")}),
    "train again": Job(_training("adalink"), OUTCOME, {**_READY, "run": _TRAINED}),
    "eval": Job(
        _gin("eval", "mini_eval", EVAL_OUTPUT_DIR="scores", ADAPTER_PATH="run"),
        ["scores/results.json", "scores/predictions/"],
        {**_READY, "run": _TRAINED},
    ),
    "convert native": Job(_converting("t5x"), ["copy/"], {"source": ("base", "base")}),
    "convert t5x": Job(
        _converting("huggingface"), ["copy/"], {"source": ("convert native", "copy")}
    ),
    "convert huggingface": Job(
        _converting("native"), ["copy/"], {"source": ("convert t5x", "copy")}
    ),
    "export": Job(
        ["export", "--adapter=run", "--base=base", "--to=exported", "--format=peft"],
        ["exported/"],
        {**_BASE, "run": ("train lora", "run")},
    ),
    "infer": Job(
        ["infer", "--base=base", "--adapters=adapters", "--vocabulary=mini"],
        ["stdout"],
        {
            **_BASE,
            "adapters/adalink": ("train adalink", "run"),
            "adapters/lora": ("train lora", "run"),
            "requests.jsonl": ("requests", "requests.jsonl"),
        },
        stdin="requests.jsonl",
        streams=True,
    ),
    "fuzz": Job([], [], _BASE),  # Its command line is drawn.
    "report": Job(
        ["report", "runs", "--to", "report"],
        ["report/"],
        {"runs/adalink": ("train adalink", "run"), "runs/lora": ("train lora", "run")},
    ),
}


class World:
    """A place for trials, with the undisturbed end of each job.

    Attributes:
      server: what runs the jobs.
      folder: a folder for this world alone.
      jobs: the jobs by name.
      seconds: that a job may take.
      memory: bytes that a job may take.
    """

    def __init__(self, server: Server, folder: pathlib.Path, jobs: Mapping[str, Job] = JOBS):
        """Makes nothing yet."""
        self.server, self.folder, self.jobs = server, folder, jobs
        self.seconds, self.memory = Start.seconds, Start.memory
        self._references: dict[str, End] = {}

    def prepare(self, name: str, place: pathlib.Path) -> None:
        """Puts copies of all that a job reads into a trial's folder."""
        for target, (maker, source) in self.jobs[name].reads.items():
            self.reference(maker)
            path = place / target
            path.parent.mkdir(parents=True, exist_ok=True)
            source = self._left(maker) / source
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, path)

    def start(self, job: str, place: pathlib.Path, /, **happens) -> Start:
        """The start of a job in a trial's folder, and what happens to it."""
        limits = {"seconds": self.seconds, "memory": self.memory}
        stdin = self.jobs[job].stdin or Start.stdin
        return Start([*self.jobs[job].argv], str(place), stdin=stdin, **limits, **happens)

    def reference(self, name: str) -> End:
        """How the undisturbed job ended. It is run once."""
        if name not in self._references:
            place = self._left(name)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            self.prepare(name, place)
            (end,) = self.server.run(self.start(name, place))
            if end.code:
                raise RuntimeError(f"{name} fails undisturbed: {end} {said(place)}")
            self._references[name] = end
        return self._references[name]

    def products(self, name: str, place: pathlib.Path | None = None) -> dict[str, bytes]:
        """The contents of what a job has left in a folder, or undisturbed, by name."""
        if place is None:
            self.reference(name)
            place = self._left(name)
        found = {}
        for product in self.jobs[name].products:
            path = place / product
            files = path.rglob("*") if path.is_dir() else [path]
            found |= {str(f.relative_to(place)): f.read_bytes() for f in files if f.is_file()}
        return found

    def left_behind(self, name: str, place: pathlib.Path) -> str:
        """Which hidden file an earlier start has left: "" if none."""
        left = sorted(hidden(place) - hidden(self._left(name)))
        return f"left behind: {left[0]}" if left else ""

    def differing(self, name: str, place: pathlib.Path) -> list[str]:
        """The names of the products that are not those of the undisturbed job."""
        expected, found = self.products(name), self.products(name, place)
        names = sorted(expected.keys() | found.keys())
        return [n for n in names if not self._same(name, expected.get(n), found.get(n))]

    def _same(self, name: str, expected: bytes | None, found: bytes | None) -> bool:
        if expected == found or expected is None or found is None or not self.jobs[name].streams:
            return expected == found
        lines = [content.splitlines() for content in (expected, found)]
        return len(lines[0]) == len(lines[1]) and all(
            one == other or "error" in json.loads(other) for one, other in zip(*lines, strict=True)
        )

    def _left(self, name: str) -> pathlib.Path:
        return self.folder / "references" / name.replace(" ", "_")


def write_base(folder: str) -> None:
    """Writes a base of random weights for the mini world's vocabulary."""
    import jax
    from flax import traverse_util

    from adalink_jax.checkpoints import StoredBase, save_base
    from adalink_jax.models.parameters import init_base
    from adalink_jax.models.t5 import T5Config

    config = T5Config(
        vocab_size=384,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=16,
        mlp_activations=("gelu", "linear"),
    )
    arrays = jax.device_get(init_base(config, jax.random.key(0)))
    arrays = traverse_util.flatten_dict(arrays, sep="/")
    save_base(folder, StoredBase(config, "random", arrays), "native")


def write_requests(path: str) -> None:
    """Writes lines for `infer`, right ones and wrong ones."""
    lines = (json.dumps(request) + "\n" for request in REQUESTS)
    pathlib.Path(path).write_text("".join(lines), encoding="utf-8")


def said(place: pathlib.Path, name: str = "") -> str:
    """The end of what a command has said on its standard error."""
    return (place / f"{name}stderr").read_text("utf-8", errors="replace")[-20_000:]


# What may stand before an error's line: notices of libraries and of this project.
_ERROR = re.compile(r"^(adalink[ \w-]*: )?error: ", re.MULTILINE)


def spoken(end: End, errors: str, codes: Sequence[int]) -> str:
    """What is wrong with how a command ended and what it said: "" if nothing is."""
    if end.wrong:
        return end.wrong
    if "Traceback (most recent call last)" in errors or "Exception ignored" in errors:
        return "traceback"
    if end.code not in codes:
        return f"exit code {end.code}"
    if end.code == 2 and len(_ERROR.findall(errors)) != 1:
        return "not one line"
    return ""


def whole(folder: pathlib.Path) -> str:
    """Which file stands half written under its final name: "" if none does."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or "checkpoints" in path.parts or not path.is_file():
            continue
        content = path.read_bytes()
        try:
            if path.suffix == ".json":
                json.loads(content)
            elif path.name == "metrics.jsonl":
                [json.loads(line) for line in content.split(b"\n")[:-1]]
            elif path.suffix == ".safetensors":
                length = int.from_bytes(content[:8], "little")
                entries = json.loads(content[8 : 8 + length])
                ends = [e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"]
                assert len(content) == 8 + length + max(ends, default=0)
        except (ValueError, AssertionError):
            return f"half written: {path.relative_to(folder)}"
    return ""


def hidden(folder: pathlib.Path) -> set[str]:
    """The names of hidden files and folders, as killed writers leave them."""
    return {str(path.relative_to(folder)) for path in folder.rglob(".*")}
