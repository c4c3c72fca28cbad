"""Every benchmark runs at toy size and reports what its docstring promises. No timings here."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import Transformer
from benchmarks import matrix_products, shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = matrix_products.Shape(2, 8, 3)


def run(name: str, out: pathlib.Path, *flags: str) -> tuple[dict, str]:
    """Runs a benchmark at toy size; returns its JSON and its output."""
    command = [sys.executable, f"benchmarks/{name}.py", "--small", "--rounds=2", f"--out={out}"]
    command += flags
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert result["benchmark"] == name
    for row in result["rows"]:
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert numbers and all(math.isfinite(value) and value > 0 for value in numbers)
    return result, done.stdout


@pytest.mark.slow
def test_train_step_times_every_method_beside_floor_and_products(tmp_path):
    result, output = run("train_step", tmp_path / "out.json", "--pairs=12")
    rows = {row["step"]: row for row in result["rows"]}
    assert {"floor", "products", "adalink", "lora", "prompt_tuning", "full"} <= rows.keys()
    assert rows["floor"]["× floor"] == rows["products"]["× products"] == 1.0
    for other in ("adalink", "floor"):
        ratio = result["against_floor"][other]["wall"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    for name in ("T5X", "peft"):
        ran = any(step.startswith(name) for step in rows)
        assert ran != any(name in line and "skipped" in line for line in output.splitlines())


@pytest.mark.slow
def test_step_parts_has_every_part_of_both_methods(tmp_path):
    result, _ = run("step_parts", tmp_path / "out.json")
    rows = {row["step"]: row for row in result["rows"]}
    assert len(rows) == 2 * 7
    for method in ("adalink", "full"):
        assert rows[f"{method}, products"]["× products"] == 1.0
        assert rows[f"{method}, as it is"]["× as it is"] == 1.0


@pytest.mark.slow
def test_streams_has_every_way_to_make_batches_of_a_task(tmp_path):
    result, output = run("streams", tmp_path / "out.json")
    names = [row["trained"] for row in result["rows"]]
    assert names[:3] == ["adalink", "lora", "adalink, cheapest"]
    assert names[3:5] == ["adalink, packed", "adalink, packed as T5X"]
    assert ("peft lora, grouped" in names) != ("skipped" in output)
    assert {row["task"] for row in result["rows"]} == {"mini_cola"}


@pytest.mark.slow
def test_dev_sets_are_evaluated_in_every_way(tmp_path):
    result, output = run("dev_sets", tmp_path / "out.json")
    rows = {row["evaluated"]: row for row in result["rows"]}
    greedy = ["greedy", "greedy, products", "greedy, padded"]
    assert [*rows][:5] == ["labels", "labels, padded", *greedy]
    assert rows["labels"]["× labels"] == rows["greedy"]["× greedy"] == 1.0
    assert ("transformers greedy, sorted" in rows) != ("skipped" in output)


@pytest.mark.slow
def test_a_load_is_held_without_a_failure_or_a_program(tmp_path):
    out = tmp_path / "out.json"
    flags = ["--minutes=0.2", "--saturates=4", "--share=0.5", f"--out={out}"]
    command = [sys.executable, "benchmarks/held_load.py", *flags]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    result = json.loads(out.read_text(encoding="utf-8"))
    *slices, whole = result["rows"]
    assert len(slices) == 10 and whole["requests"] == sum(one["requests"] for one in slices) > 20
    assert whole["failed"] == 0 and result["compiled"] == 0
    assert whole["MiB"] - result["settings"]["at first"]["MiB"] < 100


@pytest.mark.slow
def test_import_time_compares_us_with_the_libraries(tmp_path):
    result, _ = run("import_time", tmp_path / "out.json")
    imported = [row["imported"] for row in result["rows"]]
    assert imported == ["libraries", "adalink_jax", "with tasks"]


@pytest.mark.slow
def test_first_step_has_every_start(tmp_path):
    result, _ = run("first_step", tmp_path / "out.json")
    assert [row["start"] for row in result["rows"]] == ["nothing", "kept", "tokens", "warm"]


@pytest.mark.slow
def test_next_training_has_both_ways(tmp_path):
    result, _ = run("next_training", tmp_path / "out.json")
    assert [row["training"] for row in result["rows"]] == ["adalink, own", "adalink, shared"]


@pytest.mark.slow
def test_routed_low_rank_has_every_variant_for_every_number_of_modules(tmp_path):
    result, _ = run("routed_low_rank", tmp_path / "out.json")
    found = {(row["variant"], row["K"]) for row in result["rows"]}
    variants = ("routed", "routed, 4 slots", "masked", "per token")
    assert found == {(v, k) for v in variants for k in result["settings"]["routes"]}


@pytest.mark.slow
def test_mixed_batch_has_every_number_of_adapters(tmp_path):
    result, _ = run("mixed_batch", tmp_path / "out.json")
    found = {row["call"] for row in result["rows"]}
    kinds = {f"{kind}, K={k}" for kind in ("mixed", "loop") for k in result["settings"]["adapters"]}
    assert found == {"base", *kinds}


@pytest.mark.slow
def test_evaluation_scores_every_task_both_ways(tmp_path):
    result, _ = run("evaluation", tmp_path / "out.json")
    names = [row["scoring"] for row in result["rows"]]
    for task, *_ in result["settings"]["tasks"]:
        assert {f"{task}, encode once", f"{task}, per label"} <= set(names)


def operations(function, *arguments) -> int:
    """Two operations for every multiply-add of the matrix products in a function's trace."""

    def count(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
            ):
                total += count(inner.jaxpr) if hasattr(inner, "jaxpr") else 0
            if equation.primitive.name == "dot_general":
                (contracting, _), _ = equation.params["dimension_numbers"]
                x, _ = equation.invars
                inner_size = math.prod(x.aval.shape[i] for i in contracting)
                total += 2 * inner_size * math.prod(equation.outvars[0].aval.shape)
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def products(weight_gradients: bool):
    """The program of the matrix products and its arguments."""
    config = shapes.toy(0.0)
    weights = matrix_products.make_weights(config, SHAPE, jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (SHAPE.batch, SHAPE.inputs, config.emb_dim))
    targets = jax.random.normal(jax.random.key(2), (SHAPE.batch, SHAPE.targets, config.emb_dim))
    step = matrix_products.make_step(config, weight_gradients=weight_gradients)
    return config, step, (weights, inputs, targets)


@pytest.mark.parametrize("weight_gradients", [False, True])
def test_closed_form_operations_are_those_of_the_program(weight_gradients):
    config, step, arguments = products(weight_gradients)
    closed = matrix_products.flops(config, SHAPE, weight_gradients=weight_gradients)
    assert operations(step, *arguments) == closed


def test_products_are_those_of_the_network():
    config, _, (weights, inputs, targets) = products(False)
    tokens = jnp.ones((SHAPE.batch, SHAPE.inputs), jnp.int32)
    labels = jnp.ones((SHAPE.batch, SHAPE.targets), jnp.int32)
    params = init_base(config, jax.random.key(0))

    def network(params):
        model = Transformer(config)
        return model.apply({"params": params}, tokens, labels, labels, enable_dropout=False)

    def ours(weights):
        return matrix_products.forward(config, weights, inputs, targets)

    assert operations(network, params) == operations(ours, weights)


def test_products_stay_finite():
    _, step, arguments = products(True)
    assert all(jnp.isfinite(g).all() and g.any() for g in jax.tree.leaves(step(*arguments)))


@pytest.mark.slow
def test_convert_memory_measures_every_conversion_and_check(tmp_path):
    result, output = run("convert_memory", tmp_path / "out.json")
    rows = {row["process"]: row["peak MiB"] for row in result["rows"]}
    assert {"libraries", "t5x → huggingface", "huggingface → t5x", "check: adalink_jax"} <= set(
        rows
    )
    ran = "check: transformers" in rows
    assert ran != any("skipped" in line for line in output.splitlines())
    assert result["settings"]["parameters"] > 1000


@pytest.mark.slow
def test_huge_pages_are_measured_in_processes_of_their_own(tmp_path):
    result, _ = run("huge_pages", tmp_path / "out.json", "--steps=2")
    rows = {row["pages"]: row for row in result["rows"]}
    assert [*rows] == ["usual", "huge"] and rows["usual"]["× usual"] == 1.0


@pytest.mark.slow
def test_saving_tells_what_stops_from_what_it_takes(tmp_path):
    result, _ = run("saving", tmp_path / "out.json", "--rounds=3")
    rows = {row["saved"]: row for row in result["rows"]}
    assert [*rows] == ["adalink", "full"] and rows["full"]["MB"] > rows["adalink"]["MB"] > 0
    for row in rows.values():
        assert 0 < row["stops, s"] < row["whole, s"]


@pytest.mark.slow
def test_step_memory_measures_a_process_for_each(tmp_path):
    result, output = run("step_memory", tmp_path / "out.json")
    rows = {row["trained"]: row for row in result["rows"]}
    assert [*rows][:5] == ["libraries", "adalink", "lora", "prompt_tuning", "full"]
    for method in ("lora", "prompt_tuning", "full"):
        assert rows[method]["× ours"] == 1.0
        assert rows[method]["peak MiB"] > rows["libraries"]["peak MiB"]
    assert ("peft, lora" in rows) != ("peft, lora is skipped" in output)


@pytest.mark.slow
def test_image_features_compares_stored_ones_with_the_encoder_in_the_step(tmp_path):
    result, output = run("image_features", tmp_path / "out.json", "--batch=2")
    rows = {row["batch"]: row for row in result["rows"]}
    assert list(rows) == ["step", "stored", "encoder"] and rows["stored"]["x stored"] == 1
    assert rows["encoder"]["x stored"] > 1 > rows["step"]["of encoder's"]
    ratio = result["against_stored"]["CPU"]
    assert 1 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert "encoder / stored, CPU time" in output


def test_products_of_one_decoded_token_are_those_of_a_forward_pass():
    config, _, (weights, inputs, _) = products(False)
    decoded = matrix_products.generate(config, weights, inputs, 1)
    passed = matrix_products.forward(config, weights, inputs, inputs[:, :1])
    np.testing.assert_allclose(decoded, passed[:, 0], rtol=1e-4, atol=1e-5)
    several = matrix_products.generate(config, weights, inputs, 4)
    assert jnp.isfinite(several).all() and not jnp.allclose(several, 4 * decoded)
