"""Importing the package registers everything and reads nothing."""

import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import seqio

import tasks

# The libraries come first, so that what is left is what `tasks` itself does. Python's audit events
# see every file opened and every address connected to, whoever does it; TensorFlow opens its files
# in C++, so its one Python entrance is shut as well.
SCRIPT = textwrap.dedent(
    """
    import sys
    import scipy.stats, seqio, sklearn.metrics, sentencepiece, tensorflow as tf
    import tensorflow_datasets as tfds
    from google.protobuf import message
    from sentencepiece import sentencepiece_model_pb2

    def refuse(*args, **kwargs):
        raise AssertionError(f"touched while importing: {args}")

    for name in ("GFile", "stat", "exists", "isdir", "listdir", "glob"):
        setattr(tf.io.gfile, name, refuse)
    tfds.builder = tfds.load = tfds.core.DatasetBuilder.__init__ = refuse
    touched = []

    def watch(event, args):
        is_code = event == "open" and str(args[0]).endswith((".py", ".pyc"))
        is_code |= event == "open" and ".pyc." in str(args[0])
        if event in ("open", "socket.connect", "socket.getaddrinfo") and not is_code:
            touched.append((event, str(args[:2])))

    sys.addaudithook(watch)
    import tasks
    assert not touched, touched
    assert not [name for name in sys.modules if name.split(".")[0] in ("adalink_jax", "gin_config")]
    print("registered", len(seqio.TaskRegistry.names()), len(seqio.MixtureRegistry.names()))
    """
)


def _import(root, *prefix: str) -> str:
    command = [*prefix, sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_import_reads_nothing_and_needs_no_network(pytestconfig):
    prefix = ("unshare", "--user", "--map-root-user", "--net")
    permitted = shutil.which("unshare") and not subprocess.run([*prefix, "true"]).returncode
    if not permitted:
        prefix = ()  # the audit of connections in SCRIPT still holds
    said = _import(pytestconfig.rootpath, *prefix)
    assert re.fullmatch(r"registered \d\d+ \d\d+", said), said


def test_everything_is_registered():
    expected = {f"glue_{n}" for n in "cola sst2 mrpc qqp stsb mnli qnli rte".split()}
    assert set(tasks.GLUE_TASKS) == expected
    mini = {name.replace("glue", "mini") for name in expected}
    assert set(tasks.MINI_GLUE_TASKS) == mini
    seeing = {*tasks.CAPTION_TASKS, *tasks.VQA_TASKS}
    generated = {*tasks.MINI_INSTRUCTIONS, "mini_spans", "text_spans"}
    assert expected | mini | generated | seeing <= set(seqio.TaskRegistry.names())
    assert {"glue_proportional", "glue_equal", "mini_glue_equal", "mini_instructions"} <= set(
        seqio.MixtureRegistry.names()
    )
    assert expected | mini == set(tasks.LABELS) & (expected | mini | generated)
    assert tasks.EVAL_SPLITS["glue_mnli"] == ("validation_matched", "validation_mismatched")
    others = (expected | mini | generated) - {"glue_mnli"}
    assert all(tasks.EVAL_SPLITS[name] == ("validation",) for name in others)
