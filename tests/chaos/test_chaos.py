"""Trials of all that disturbs a command, in short form, and what the trials themselves notice."""

import dataclasses
import functools
import itertools
import json
import pathlib
import random
import re
import signal

import pytest

from tests.chaos import fuzz, jobs, planted, server, trials

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Hosts have tests of their own in the long tier.
SHORT = (
    "kill train adalink",
    "kill convert t5x",
    "kill infer",
    "stop train lora",
    "full train adalink",
    "clock train adalink",
    "twice train adalink",
    *(kind for kind in trials.KINDS if kind.startswith(("damage", "fuzz"))),
)


@pytest.mark.slow
def test_the_short_form_of_all_trials(tmp_path):
    (tmp_path / "world").mkdir()
    with server.Server(*server.MODULES) as forks:
        world = jobs.World(forks, tmp_path / "world")
        kinds = {name: trials.KINDS[name] for name in SHORT}
        counts = dict(trials.run(world, kinds, 0, range(len(SHORT)), tmp_path / "kept"))
    assert counts.keys() == kinds.keys()
    assert not {name: found for name, found in counts.items() if found.keys() - trials.GOOD}
    for name in SHORT:
        if name.startswith("fuzz"):
            assert counts[name]["right"] and counts[name]["refused"], (name, counts[name])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A world of commands that do almost nothing, and may take little."""
    with server.Server(planted.__name__) as forks:
        world = jobs.World(forks, tmp_path_factory.mktemp("small"), planted.JOBS)
        world.seconds, world.memory = 60.0, 300 << 20
        yield world


FAULTS = [
    (trials.kill, "ends_otherwise_after_a_kill", "silent"),
    (trials.kill, "refuses_after_a_kill", "stranded"),
    (trials.kill, "leaves_something_after_a_kill", "left behind"),
    (trials.kill, "writes_a_part_first", "half written"),
    (trials.stop, "says_nothing_when_told_to_end", "without a word"),
    (trials.full, "says_a_full_disk_in_a_traceback", "traceback"),
    (trials.damage, "believes_what_it_reads", "silent"),
    (trials.damage, "says_damage_in_two_lines", "not one line"),
    (trials.damage, "aborts_on_damage", "exit code -6"),
    (trials.damage, "loses_something_where_it_refuses", "silent"),
    (trials.clock, "believes_the_clock", "silent"),
    (trials.twice, "counts_its_starts", "silent"),
    (trials.hosts, "names_no_host", "not named"),
    (trials.hosts, "has_other_losses_alone", "silent"),
    (trials.fuzz, "tests.chaos.planted:attack_that_fails", "traceback"),
    *((trial, "right", "") for trial in (trials.kill, trials.stop, trials.full, trials.damage)),
    *((trial, "right", "") for trial in (trials.clock, trials.twice)),
    (trials.fuzz, "tests.chaos.planted:attack_that_passes", ""),
]


@pytest.mark.parametrize(("trial", "job", "word"), FAULTS)
def test_a_planted_fault_is_found_and_no_other(small, tmp_path, capsys, trial, job, word):
    kinds = {"kind": functools.partial(trial, job)}
    numbers = range(12 if word else 5)
    for number, (_, counts) in enumerate(trials.run(small, kinds, 0, numbers, tmp_path)):
        if wrong := counts.keys() - trials.GOOD:
            assert wrong == {word}, capsys.readouterr().out
            told = (tmp_path / f"kind-0-{number}" / "wrong.txt").read_text()
            assert told.startswith(f"--seed 0 --first {number} --kind 'kind'") and job in told
            return
    assert not word


@pytest.mark.parametrize(("job", "word"), [("never_ends", "hang"), ("takes_memory", "memory")])
def test_what_takes_too_much_is_ended(small, tmp_path, job, word):
    (end,) = small.server.run(dataclasses.replace(small.start(job, tmp_path), seconds=2.0))
    assert (end.code, end.wrong) == (-signal.SIGKILL, word)
    assert word == "memory" or "Timeout" in jobs.said(tmp_path)  # And where it was.


def test_altered_files_are_read_right_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fuzz.main("tests.chaos.fuzz:records", "0", "20")
    counts = json.loads(capsys.readouterr().out)
    assert counts["right"] and counts["refused"]


@pytest.mark.parametrize(
    ("code", "errors", "expected"),
    [
        (0, "a notice\n", ""),
        (2, "a notice\nerror: RANK is 0\n", ""),
        (2, "", "not one line"),
        (2, "error: RANK is 0\nerror: SEED is 'a'\n", "not one line"),
        (2, "Traceback (most recent call last):\nValueError\n", "traceback"),
        (1, "error: RANK is 0\n", "exit code 1"),
        (-signal.SIGSEGV, "", "exit code -11"),
    ],
)
def test_what_is_wrong_with_an_end_is_noticed(code, errors, expected):
    assert jobs.spoken(server.End(code, "", 0, 1.0), errors, (0, 2)) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("run.json", b'{"a": 1}', False),
        ("run.json", b'{"a": ', True),
        (".run.json.ab12", b'{"a": ', False),
        ("metrics.jsonl", b'{"a": 1}\n{"a"', False),
        ("metrics.jsonl", b'{"a": 1}\n{"a"\n', True),
        ("a.safetensors", b"\2\0\0\0\0\0\0\0{}", False),
        ("a.safetensors", b"\2\0\0\0\0\0\0\0{", True),
    ],
)
def test_a_half_written_file_is_noticed(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert bool(jobs.whole(tmp_path)) == expected


def test_every_alteration_alters(tmp_path):
    path, said = tmp_path / "file", set()
    for seed in range(60):
        path.write_bytes(b"content")
        said.add(trials.alter(path, random.Random(seed)).partition(" at ")[0])
        assert not path.exists() or path.read_bytes() != b"content"
    assert {"it is gone", "cut", "zeros", "more", "bit 0 is flipped"} <= said


def test_the_table_of_promises_names_tests_that_exist():
    table = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    files = itertools.chain.from_iterable(ROOT.glob(f"tests/{p}test_*.py") for p in ("", "**/"))
    known = set(re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in files), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", table))
    assert len(named) > 30 and not named - known, named - known
