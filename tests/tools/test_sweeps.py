"""The sweeps' shell scripts on the shipped base: a few steps, then the report; again is at once."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from adalink_jax import cli
from adalink_jax.errors import UserError
from adalink_jax.tools.sweep import experiment, pool, quickstart, trainings

SHORT = (
    "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4",
    "--gin.Evaluation.limit=8",
)  # fmt: skip


def sweep(root, script, *arguments, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", f"scripts/{script}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_few_shots_and_mixtures_end_in_a_report(pytestconfig, tmp_path):
    root, base = pytestconfig.rootpath, "adalink_jax/bases/mini"
    few = ("few_shot.sh", tmp_path / "few", "experiments/mini_adalink.gin", base, "mini_cola")
    variables = {"SHOTS": "2", "SEEDS": "0", "EVAL_FLAGS": "--gin.Evaluation.limit=8"}
    first = sweep(root, *few, *SHORT, **variables)
    assert "\n3 runs: " in first  # Among them the frozen base, without and with examples.
    text = (tmp_path / "few" / "report" / "report.md").read_text()
    assert "adalink, rank 4, 2 examples" in text
    assert "the frozen base, 4 examples in context" in text
    shown = (tmp_path / "few" / "in_context4" / "run.json").read_text()
    assert '"in_context": 4' in shown
    # Finished runs are left as they are.
    assert sweep(root, *few, *SHORT, **variables).count("was finished") == 1

    several = ("multitask_sweep.sh", tmp_path / "several", "experiments/mini_adalink.gin")
    flags = (*SHORT, f"--gin.INITIAL_CHECKPOINT_PATH={base}")
    choice = {"MIXTURES": "mini_cola:1", "TASKS": "", "RANKS": "2"}
    # With one task, shared and per task are equal trainings, which count once.
    assert "\n1 runs: " in sweep(root, *several, *flags, **choice)


@pytest.mark.slow
def test_side_by_side_each_is_trained_as_alone(pytestconfig, tmp_path):
    """Four command lines, two of them wrong: the others are trained all the same."""
    root, base = pytestconfig.rootpath, "adalink_jax/bases/mini"

    def line(name, *more):
        flags = ["--gin_file=experiments/mini_adalink.gin", f"--gin.MODEL_DIR={tmp_path / name}"]
        return [*flags, f"--gin.INITIAL_CHECKPOINT_PATH={base}", *SHORT, *more]

    wrong = [line(name, "--gin.RANK=0") for name in "cd"]
    lines = [line("a"), line("b", "--gin.SEED=1"), *wrong, line("a")]
    done = subprocess.run(
        [sys.executable, "scripts/sweep.py", "--jobs", str(min(2, os.cpu_count()))],
        input="\n".join(map(shlex.join, lines)), cwd=root, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 2
    # What is wrong with both is said once.
    assert done.stderr.count("RANK is 0") == 1 and "2 of 4 trainings failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if (p / "results.json").exists()) == ["a", "b"]
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["starts"][0]["command"].startswith("adalink train --gin_file=experiments/mini")
    assert record["starts"][0]["seconds"] > 0
    alone = subprocess.run(
        [sys.executable, "scripts/train.py", *line("alone")], cwd=root, capture_output=True
    )
    assert alone.returncode == 0
    # Equal to rounding: another number of cores may add in another order.
    arrays, expected = (
        load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("a", "alone")
    )
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_whose_trainings_are_saved(pytestconfig, tmp_path):
    flags = {
        "MODEL_DIR": tmp_path / "run", "INITIAL_CHECKPOINT_PATH": "adalink_jax/bases/mini",
        "TRAIN_STEPS": 10**6, "CHECKPOINT_PERIOD": 10**6, "EVAL_PERIOD": 10**6,
        "MIXTURE_OR_TASK_NAME": "mini_cola", "Periods.log_period": 1,
    }  # fmt: skip
    line = [
        "--gin_file=experiments/mini_adalink.gin",
        *(f"--gin.{n}={v}" for n, v in flags.items()),
    ]
    started = subprocess.Popen(
        [sys.executable, "scripts/sweep.py"], cwd=pytestconfig.rootpath, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # More of them than run at once: none is begun after the first was stopped.
    others = [[*line, f"--gin.MODEL_DIR={tmp_path / name}"] for name in "abc"]
    started.stdin.write("\n".join(map(shlex.join, [line, *others])))
    started.stdin.close()
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 600
    while not metrics.exists() or not metrics.read_text().count("\n") > 1:
        assert started.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    os.killpg(started.pid, signal.SIGINT)
    errors = started.stderr.read()
    assert started.wait(timeout=300) == 130
    assert errors.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in errors and "leaked" not in errors
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("given", [None, "glibc.malloc.hugetlb=0"])
def test_trainings_have_huge_pages_unless_told_otherwise(monkeypatch, given):
    monkeypatch.setenv("GLIBC_TUNABLES", given or "")  # It is as before after the test.
    if given is None:
        del os.environ["GLIBC_TUNABLES"]
    assert pool.train_all([], jobs=1) == 0
    assert os.environ["GLIBC_TUNABLES"] == (given or "glibc.malloc.hugetlb=1")


@pytest.mark.parametrize("jobs", ["0", "1000"])
def test_a_wrong_number_of_processes_is_one_line(monkeypatch, capsys, jobs):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["sweep", "--jobs", jobs]) == 2
    assert capsys.readouterr().err.startswith(f"error: --jobs={jobs}; this machine")


def test_a_line_that_is_no_command_line_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("--gin.SEED=1\n--gin.A='b\n"))
    assert cli.main(["sweep"]) == 2
    assert "error: not a command line (No closing quotation): --gin.A='b" in capsys.readouterr().err


def test_runs_that_were_finished_before_foretell_no_time():
    assert pool._time_left(elapsed=20.0, trained=0, remaining=300) == ""
    # 193 of 496 were finished at the start, then one trained in 16 seconds.
    assert pool._time_left(elapsed=16.0, trained=1, remaining=302) == ", 81 min left"


@pytest.fixture
def asked(monkeypatch):
    """What a sweep does, in its order, without doing it."""
    done = []
    monkeypatch.setattr(pool, "call", lambda *words: done.append(words))

    def train_all(commands, jobs):
        done.extend(("train", *words) for words in commands)
        return 0

    monkeypatch.setattr(pool, "train_all", train_all)
    for module in (trainings, experiment, quickstart):
        monkeypatch.setattr(module, "report", lambda runs, to, *_: done.append(("report", to)))
    return done


def test_every_glue_task_is_trained_with_every_method_and_seed(asked):
    chosen = ["--tasks", "glue_rte glue_cola", "--methods=adalink,full", "--seeds", "0 1"]
    assert cli.main(["glue", "out", "base", *chosen, "--gin.TRAIN_STEPS=5"]) == 0
    assert len(asked) == 2 * 2 * 2 + 1 and asked[-1] == ("report", "out/report")
    assert asked[5] == (
        "train", "--gin_file=experiments/glue_full.gin",
        "--gin.MODEL_DIR=out/full/glue_rte/seed1", "--gin.MIXTURE_OR_TASK_NAME=glue_rte",
        "--gin.INITIAL_CHECKPOINT_PATH=base", "--gin.SEED=1", "--gin.TRAIN_STEPS=5",
    )  # fmt: skip


def test_a_method_needs_no_gin_file_but_its_own(asked, tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.gin").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["glue", "out", "base", "--methods=mine", "--tasks=glue_rte"]) == 0
    assert asked[0][1:4] == (
        "--gin_file=experiments/glue.gin", "--gin_file=methods/mine.gin",
        "--gin.MODEL_DIR=out/mine/glue_rte/seed0",
    )  # fmt: skip


def test_a_frozen_base_is_scored_as_its_trainings_are(asked):
    chosen = [
        "--shots=4",
        "--in-context=0",
        "--seeds=0",
        "--eval-flags=--gin.Precision.dtype=bfloat16",
    ]
    flags = ["--gin.VOCABULARY=v", "--gin.Evaluation.limit=9", "--gin.TRAIN_STEPS=5"]
    assert cli.main(["few-shot", "out", "e.gin", "base", "mini_cola", *chosen, *flags]) == 0
    scored, trained = asked[:2]
    assert scored[0] == "eval" and trained[0] == "train"
    assert scored[-3:] == (*flags[:2], "--gin.Precision.dtype=bfloat16")
    assert trained[-3:] == tuple(flags)


def test_ranks_are_trained_on_each_base(asked):
    chosen = ["--ranks", "1 4", "--bases", "some/a some/b/"]
    assert cli.main(["rank-sweep", "out", "e.gin", *chosen]) == 0
    folders = [word for line in asked for word in line if word.startswith("--gin.MODEL_DIR")]
    assert folders == [
        f"--gin.MODEL_DIR=out/{base}/rank{rank}/seed0" for base in "ab" for rank in (1, 4)
    ]
    assert asked[2][2] == "--gin.RANK=1" and asked[2][-1] == "--gin.INITIAL_CHECKPOINT_PATH=some/b/"


def test_the_experiments_mixtures_and_equal_sizes(asked, monkeypatch):
    monkeypatch.setattr(experiment.rates, "best_of", lambda folder: 0.5)
    chosen = ["--methods", "adalink full", "--seeds=7", "--tuning-tasks=cola", "--raw=r"]
    chosen += ["--rates=0.1"]
    assert cli.main(["experiment", "out", "--stages", "mixed equal", *chosen, "--gin.X=1"]) == 0
    assert len(asked) == 4 + 2 + 2 + 2
    shared, per_task = asked[2:4]  # AdaLink's on the raw base.
    assert shared[1:4] == (
        "--gin_file=experiments/mini_adalink.gin",
        "--gin.MODEL_DIR=out/mixed/raw/adalink/shared/seed7",
        "--gin.INITIAL_CHECKPOINT_PATH=r",
    )
    assert shared[-4:] == (
        "--gin.TRAIN_STEPS=800", "--gin.EVAL_PERIOD=400", "--gin.X=1", "--gin.ROUTES=1",
    )  # fmt: skip
    assert per_task[-1] == "--gin.ROUTES=8"
    assert all("ROUTES" not in word for line in asked[4:6] for word in line)  # full's
    # 1,024 parameters at D = 128: rank 4.
    assert [line[-1] for line in asked[6:]] == ["--gin.adalink.AdaLink.rank=4"] * 4


def test_methods_whose_sizes_are_too_far_from_the_budget_are_left_out(asked, monkeypatch, capsys):
    """A unit of a bottleneck's rank is 1,445 parameters here; the base lacks layers of s4."""
    monkeypatch.setattr(experiment.rates, "best_of", lambda folder: 0.5)
    chosen = ["--methods=bottleneck s4 bitfit", "--seeds=7", "--tuning-tasks=cola", "--bases=tuned"]
    flags = ["experiment", "out", "--stages=equal", "--budget=6144", "--rates=0.1", *chosen]
    assert cli.main([*flags, "--tolerance=0.06"]) == 0
    assert [line[-1] for line in asked] == ["--gin.bottleneck.Bottleneck.rank=4"] * 2
    left_out = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in left_out] == [" mini, s4", " mini, bitfit"]
    assert "the encoder has layers 0 to 2" in left_out[0]
    assert "cannot within 6%: its only size is 6,784 parameters (+10.4%)" in left_out[1]
    assert cli.main([*flags, "--tolerance=6"]) == 2
    assert "error: tolerance is 6.0; it must be a part of the" in capsys.readouterr().err
    for wrong in ("--methods=bitfits", "--budget=0"):
        assert cli.main([*flags, wrong]) == 2


def test_a_size_is_trained_at_the_rate_that_was_best_for_it(asked, monkeypatch):
    best = {"out/rank_rates/tuned/rank1": 0.1, "out/rank_rates/tuned/rank64": 0.003}
    best["out/equal_rates/tuned/adalink"] = 0.02
    monkeypatch.setattr(experiment.rates, "best_of", best.__getitem__)
    chosen = ["--bases=tuned", "--methods=adalink", "--tuning-tasks=cola", "--seeds=7"]
    chosen += ["--ranks=1 64", "--rates=0.1 0.2", "--budget=256"]
    assert cli.main(["experiment", "out", "--stages=ranks equal", *chosen]) == 0
    named = [dict(word[6:].split("=", 1) for word in line if "gin." in word[:6]) for line in asked]
    folders = [line["MODEL_DIR"].removeprefix("out/") for line in named]
    assert folders == [
        *(f"rank_rates/tuned/rank{rank}/{rate}/cola" for rank in (1, 64) for rate in (0.1, 0.2)),
        *("ranks/tuned/rank1/cola/seed7", "ranks/tuned/rank64/cola/seed7"),
        *(f"equal_rates/tuned/adalink/{rate}/cola" for rate in (0.1, 0.2)),
        "equal/tuned/adalink/cola/seed7",
    ]
    assert [line["LEARNING_RATE"] for line in named[4:6]] == ["0.1", "0.003"]
    assert [line["RANK"] for line in named[:6]] == ["1", "1", "64", "64", "1", "64"]
    assert named[-1]["LEARNING_RATE"] == "0.02"
    assert {line["adalink.AdaLink.rank"] for line in named[6:]} == {"1"}


def test_scores_of_another_base_are_not_taken_for_this_ones(asked, tmp_path, capsys):
    folder = tmp_path / "in_context0"
    folder.mkdir()
    flags = ["--gin.INITIAL_CHECKPOINT_PATH=mini", "--gin.Evaluation.limit=8"]
    command = shlex.join(["adalink", "eval", *flags, f"--gin.EVAL_OUTPUT_DIR={folder}"])
    trainings.score(str(folder), flags)
    assert len(asked) == 1  # There were no scores.
    (folder / "run.json").write_text(json.dumps({"starts": [{"command": command}]}))
    (folder / "results.json").touch()
    trainings.score(str(folder), [f"--gin.EVAL_OUTPUT_DIR={folder}", *flags])
    with pytest.raises(UserError, match="holds scores made with other flags: .*=mini"):
        trainings.score(str(folder), ["--gin.INITIAL_CHECKPOINT_PATH=mini_raw", flags[1]])
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="no run.json that says of what"):
        trainings.score(str(folder), flags)
    assert len(asked) == 1


def test_a_report_is_of_the_stages_that_were_run(asked, tmp_path, capsys):
    assert cli.main(["experiment", str(tmp_path), "--stages=report"]) == 2
    assert "no stage was run there yet" in capsys.readouterr().err
    (tmp_path / "equal").mkdir()
    assert cli.main(["experiment", str(tmp_path), "--stages=report"]) == 0
    assert asked == [("report", f"{tmp_path}/report/equal")]


def test_an_experiment_on_one_base(asked):
    chosen = ["--bases=tuned", "--methods=vera", "--tuning-tasks=cola", "--rates=0.01 0.1"]
    assert cli.main(["experiment", "out", "--stages=rates", *chosen]) == 0
    folders = [word for line in asked for word in line if word.startswith("--gin.MODEL_DIR")]
    assert folders == [f"--gin.MODEL_DIR=out/rates/tuned/vera/{r}/cola" for r in ("0.01", "0.1")]


def test_rates_for_glue_are_chosen_on_examples_that_are_held_out_of_training(asked, monkeypatch):
    monkeypatch.setattr(experiment.rates, "best_of", lambda folder: 0.5)
    chosen = ["--world=english", "--methods=lora", "--tasks=rte", "--tuning-tasks=rte", "--seeds=4"]
    chosen += ["--rates=0.1", "--raw=some/raw", "--gin.TRAIN_STEPS=9", "--gin.GLUE_DIR=g"]
    assert cli.main(["experiment", "out", "--stages=rates single alone", *chosen]) == 0
    grid, _, tuned, raw, *alone = asked
    held_out = ("--gin.Data.held_out=0.1", "--gin.Evaluation.split=held_out")
    assert grid[-2:] == held_out and not set(held_out) & {*tuned, *raw}
    assert raw[1:] == (
        "--gin_file=experiments/english.gin", "--gin_file=methods/lora.gin",
        "--gin.MODEL_DIR=out/single/raw/lora/rte/seed4", "--gin.INITIAL_CHECKPOINT_PATH=some/raw",
        "--gin.MIXTURE_OR_TASK_NAME=glue_rte", "--gin.SEED=4", "--gin.LEARNING_RATE=0.5",
        "--gin.VOCABULARY=some/raw", "--gin.TRAIN_STEPS=9", "--gin.GLUE_DIR=g",
    )  # fmt: skip
    assert "--gin.INITIAL_CHECKPOINT_PATH=english" in tuned
    own = [("--gin.VOCABULARY=english", "--gin.GLUE_DIR=g")] * 2
    assert [line[-2:] for line in alone] == own + [("--gin.VOCABULARY=some/raw", raw[-1])] * 2


def test_an_experiment_on_a_table_of_ones_own(asked, monkeypatch):
    monkeypatch.setattr(experiment.rates, "best_of", lambda folder: 0.5)
    monkeypatch.setattr(experiment.Study, "report", lambda study: None)
    chosen = ["--tuned=mini", "--methods=lora", "--rates=0.1", "--ranks=2", "--seeds=3"]
    own = ["--data=my/reviews.csv", "--dev", "dev.csv", "--gin.Table.quotes=False", "--gin.SEED=1"]
    assert cli.main(["experiment", "out", *chosen, *own]) == 0
    rate, alone, single, rank_rate, rank = asked  # No mixtures: the table is one task.
    read = ("--data=my/reviews.csv", "--dev=dev.csv", "--gin.Table.quotes=False")
    assert single == (
        "train", "--gin_file=experiments/own_data.gin", "--gin_file=methods/lora.gin",
        "--gin.MODEL_DIR=out/single/tuned/lora/reviews/seed3",
        "--gin.INITIAL_CHECKPOINT_PATH=mini", "--gin.MIXTURE_OR_TASK_NAME=reviews", "--gin.SEED=3",
        "--gin.LEARNING_RATE=0.5", *read, "--gin.SEED=1",
    )  # fmt: skip
    held_out = ("--gin.Data.held_out=0.1", "--gin.Evaluation.split=held_out")
    assert rate[-2:] == held_out and rank_rate[-2:] == held_out
    assert rank[-2:] == ("--gin.SEED=1", "--gin.RANK=2")
    assert alone[-3:] == read and "--gin.TASK_FEATURE_LENGTHS=None" in alone


def test_an_experiment_on_pictures(asked, monkeypatch):
    monkeypatch.setattr(experiment.rates, "best_of", lambda folder: 0.5)
    chosen = ["--world=images", "--bases=raw", "--seeds=0", "--ranks=2", "--rates=0.1"]
    chosen += ["--methods=adalink_by_modality projection", "--tasks=okvqa", "--budget=2048"]
    assert cli.main(["experiment", "out", "--stages=single alone mixed", *chosen]) == 0
    folders = [word.partition("=out/")[2] for line in asked for word in line if "=out/" in word]
    module, captions, questions = "raw/adalink_by_modality", "captions", "questions"
    assert [folder.replace("mini_image_", "") for folder in folders[:-2]] == [
        f"single/{module}/okvqa/seed0",
        "single/raw/projection/okvqa/seed0",
        "alone/raw/mini_okvqa/in_context0",
        *(f"mixed/{module}/{captions}/{one}/seed0" for one in ("shared", "per_task")),
        *(f"mixed/{module}/{questions}/{one}/seed0" for one in ("shared", "per_task")),
    ]
    assert asked[1][2] == "--gin_file=methods/projection.gin"
    assert {"--gin.Images.encoder=mini_images_encoder", "--gin.Evaluation.mode=greedy"} < {
        *asked[2]
    }
    assert asked[-3][-1] == "--gin.ROUTES=4"
    assert not any("ROUTES" in word for word in asked[-1])  # It has none.
    asked.clear()
    assert cli.main(["experiment", "out", "--stages=alone", *chosen[:2]]) == 0
    alone = [word for line in asked for word in line if "EVAL_OUTPUT_DIR" in word]
    assert [word.split("/")[-2] for word in alone] == [
        "mini_image_captions",
        "mini_image_questions",
    ]
    asked.clear()
    assert cli.main(["experiment", "out", "--stages=ranks equal", *chosen]) == 0
    of_both = "--gin_file=methods/adalink_by_modality.gin"
    assert all(line[2] == of_both for line in asked) and len(asked) == 8  # Two tasks.
    assert asked[-1][-1] == "--gin.adalink.AdaLink.rank=4"  # Two modules of 2 x 128 x 4.


def test_an_experiment_in_the_words_of_flan(asked, monkeypatch):
    monkeypatch.setattr(experiment.rates, "best_of", lambda folder: 0.5)
    chosen = ["--world=english_flan", "--bases=tuned", "--methods=full", "--tasks=qnli"]
    assert cli.main(["experiment", "out", "--stages=single mixed alone", *chosen]) == 0
    single, mixed, alone = asked[0], asked[3], asked[-1]
    files = ("--gin_file=experiments/english.gin", "--gin_file=methods/full.gin")
    assert single[1:3] == mixed[1:3] == files
    assert "--gin.MIXTURE_OR_TASK_NAME=flan_qnli" in single
    assert "--gin.MIXTURE_OR_TASK_NAME=flan_glue_equal" in mixed
    assert "--gin.MIXTURE_OR_TASK_NAME=flan_qnli" in alone  # Of the tasks that are named.
    assert "--gin.INITIAL_CHECKPOINT_PATH=english" in single


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["experiment", "out", "--world=glu"], "no world 'glu'; did you mean 'glue'?"),
        (["experiment", "out", "--world=glue", "--tuned=b"], "has no bases: name one by --raw"),
        (["experiment", "out", "--data=a.csv"], "a.csv has no bases: name one by --tuned"),
        (["experiment", "out", "--data=a.csv", "--world=mini"], "takes the place of a world"),
        (["experiment", "out", "--data=a.csv", "--tasks=rte"], "a.csv is one task; leave --tasks"),
        (["experiment", "out", "--data=a.csv", "--tuning-tasks=rte"], "leave --tasks and --tuning"),
        (["experiment", "out", "--data=a.csv", "--stages=mixed"], "so there is no stage mixed"),
        (["experiment", "out", "--data=a.csv", "--stages=equal"], "stage equal needs --model"),
        (["experiment", "out", "--tasks=colla"], "no task 'colla'; did you mean 'cola'?"),
        (["experiment", "out", "--methods=adalnk"], "no file adalnk.gin in gin/methods; did you"),
        (["experiment", "out", "--seeds=0 x"], "'x' is no whole number from 0 (commas divide a"),
        (["experiment", "out", "--rates=0,01"], "'0' is no number above 0 (commas divide a list)"),
        (["rank-sweep", "out", "e.gin", "--ranks=1 four"], "'four' is no whole number from 1"),
        (["glue", "out", "base", "--gim.SEED=1"], "unknown flag --gim.SEED"),
        (["glue", "out", "base", "--methods=adalnk"], "no file adalnk.gin in gin/methods; did you"),
        (["experiment", "out", "--stages=single,rank"], "no stage 'rank'; did you mean 'ranks'?"),
        (["experiment", "out", "--bases=tune"], "no base 'tune'; did you mean 'tuned'?"),
        (["multitask", "out", "e.gin", "--mixtures=glue_equal"], "is not NAME:NUMBER_OF_TASKS"),
        (["rank-sweep", "out", "e.gin", "--bases=x/base,y/base"], "two bases are called base"),
    ],
)
def test_mistakes_are_found_before_the_first_training(asked, capsys, line, words):
    assert cli.main(line) == 2 and not asked
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "few-shot",
        "multitask",
        "rank-sweep",
        "glue",
        "experiment",
        "pretrain-mini",
        "pretrain-images",
        "english-data",
        "pretrain-english",
    ],
)
def test_without_arguments_they_say_how_they_are_called(name, capsys):
    assert cli.main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the following arguments are required: ")
    assert line.endswith(f"; adalink {name} --help says what it takes")


def test_a_script_says_its_commands_usage(pytestconfig):
    command = ["bash", "scripts/rank_sweep.sh"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "adalink rank-sweep --help says what it takes" in done.stderr


def test_a_frozen_base_is_scored_as_the_trainings_are():
    flags = ["--gin.Evaluation.limit=50", "--gin.options.Evaluation.limit=50", "--gin.GLUE_DIR=g"]
    assert trainings.for_scoring([*flags, "--gin.MyEvaluation.limit=5", "--gin.SEED=1"]) == flags
