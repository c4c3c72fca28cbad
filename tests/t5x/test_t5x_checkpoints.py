"""What a restored checkpoint must hold, and adapters in and out of T5X's checkpoints."""

import tarfile

import numpy as np
import pytest

from tests.t5x import recorded

ARCHIVE = recorded.FOLDER / "adalink.tar.xz"


@pytest.fixture
def tree(tiny):
    """State dicts as T5X's restore functions see them: (method) -> of base and of model."""
    import jax

    from adalink_jax.methods.base import merge
    from adalink_jax.models.parameters import init_adapter

    config, base, _ = tiny
    base = jax.device_get(base)

    def build(method):
        adapter = jax.device_get(init_adapter(config, method, base, jax.random.key(0)))
        whole = base if method.trains_base else merge(base, adapter)
        return {"target": base, "state": {"step": 7}}, {"target": whole, "state": {"step": 0}}

    return build


@pytest.fixture
def adalink():
    from adalink_jax.methods.adalink import AdaLink

    return AdaLink(rank=2)


def without(state: dict, name: str) -> dict:
    from flax import traverse_util

    flat = traverse_util.flatten_dict(state, sep="/")
    del flat[f"target/{name}"]
    return traverse_util.unflatten_dict(flat, sep="/")


def test_a_base_is_taken_as_it_is(tree, adalink):
    from adalink_jax.methods.full import Full
    from adalink_jax.t5x.checkpoints import check_restored

    held, wanted = tree(adalink)
    assert check_restored(held, wanted, method=adalink, base_path="BASE") is held
    assert check_restored(wanted, wanted, method=adalink, base_path="BASE") is wanted
    full = tree(Full())
    assert check_restored(*full, method=Full(), base_path="BASE") is full[0]


@pytest.mark.parametrize("scope", ["adalink", "full"])
def test_a_missing_array_of_the_base_is_an_error(scope, tree):
    from adalink_jax.errors import UserError
    from adalink_jax.methods import METHODS
    from adalink_jax.t5x.checkpoints import check_restored

    method = METHODS[scope](**({"rank": 2} if scope == "adalink" else {}))
    held, wanted = tree(method)
    held = without(held, "encoder/encoder_norm/scale")
    message = "checkpoint BASE lacks 1 arrays that would start from random values: encoder/encoder_"
    with pytest.raises(UserError, match=message):
        check_restored(held, wanted, method=method, base_path="BASE")
    assert check_restored(held, wanted, method=method, base_path="BASE", is_resuming=True) is held


def test_what_has_no_place_or_is_there_in_parts_is_an_error(tree, adalink):
    from adalink_jax.errors import UserError
    from adalink_jax.methods.lora import LoRA
    from adalink_jax.t5x.checkpoints import check_restored

    held, wanted = tree(adalink)
    other = tree(LoRA(rank=2))[1]
    with pytest.raises(UserError, match="BASE holds .* arrays that this model has no place for"):
        check_restored(other, wanted, method=adalink, base_path="BASE")
    part = without(wanted, "encoder/adalink/up")
    with pytest.raises(UserError, match="lacks 1 arrays of the adalink adapter of which it holds"):
        check_restored(part, wanted, method=adalink, base_path="BASE")
    with pytest.raises(UserError, match="lacks 2 arrays of the adapter; give ADAPTER_PATH"):
        check_restored(held, wanted, method=adalink, base_path="BASE", may_be_new=False)
    with pytest.raises(UserError, match="holds 2 arrays of an adapter, beside that of FOLDER"):
        check_restored(wanted, wanted, method=adalink, base_path="B", adapter_path="FOLDER")


def test_an_adapter_of_another_base_is_refused(tree, adalink, tiny, write_base, tmp_path):
    import jax

    from adalink_jax.checkpoints import fingerprint, load_base
    from adalink_jax.errors import UserError
    from adalink_jax.t5x.checkpoints import AdapterWriter, check_restored, stored_method

    config = tiny[0]
    held, wanted = tree(adalink)
    written = AdapterWriter(adalink, config, str(tmp_path), "some_task")
    infos = object()
    assert written(wanted, infos) == (wanted, infos)
    assert stored_method(str(tmp_path)) == stored_method(str(tmp_path / "adapter")) == adalink
    other = write_base(config)
    assert fingerprint(load_base(other)[1]) != fingerprint(jax.device_get(tiny[1]))
    given = {"method": adalink, "base_path": str(other), "adapter_path": str(tmp_path)}
    with pytest.raises(UserError, match="was trained on another base: fingerprint"):
        check_restored(held, wanted, **given)


def test_a_models_new_adapter_is_the_stored_one(model, padded, perturbed, tmp_path):
    """The other way round: what this project wrote is what T5X starts from."""
    import jax
    from flax import core

    from adalink_jax.methods.base import merge, split
    from adalink_jax.methods.prompt_tuning import PromptTuning
    from adalink_jax.t5x.checkpoints import AdapterWriter, stored_method

    method, batch = PromptTuning(length=3, bottleneck=4, dropout_rate=0.0), padded(3)
    shapes = {name: value.shape for name, value in batch.items()}
    ours = model("1.1", method)
    params = core.unfreeze(ours.get_initial_variables(jax.random.key(0), shapes)["params"])
    params = perturbed(params, method)
    config = ours.module.config
    AdapterWriter(method, config, str(tmp_path), "task")({"target": params, "state": {"step": 3}})
    again = model("1.1", stored_method(str(tmp_path)), adapter_path=str(tmp_path))
    started = again.get_initial_variables(jax.random.key(5), shapes)["params"]
    started = core.unfreeze(started)
    assert set(split(started, method)[0]["encoder"]["prompt_tuning"]) == {"prompt"}
    adapter, _ = split(started, method)

    merged = merge(split(params, method)[1], adapter)
    pairs = ((ours, params), (again, merged))
    logits = [np.asarray(jax.jit(m._compute_logits)(p, batch)) for m, p in pairs]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)


def test_prompts_start_from_the_bases_table(model, padded, tmp_path):
    import jax

    from adalink_jax.checkpoints import fingerprint, save_adapter
    from adalink_jax.methods.base import Method, split
    from adalink_jax.methods.prompt_tuning import PromptTuning

    plain, batch = model("1.1"), padded(3)
    shapes = {name: value.shape for name, value in batch.items()}
    base = plain.get_initial_variables(jax.random.key(9), shapes)["params"]
    base = jax.device_get(split(base, Method())[1])
    save_adapter(
        tmp_path / "base",
        base,
        method_name="full",
        settings={},
        architecture=plain.module.config,
        base_fingerprint=fingerprint(base),
        route_names=["all"],
        metadata={},
    )
    method = PromptTuning(length=5, initialisation="sampled_vocabulary")
    ours = model("1.1", method, initial_checkpoint_path=str(tmp_path / "base"))
    params = ours.get_initial_variables(jax.random.key(0), shapes)["params"]
    prompt = np.asarray(params["encoder"]["prompt_tuning"]["prompt"])[0]
    table = base["token_embedder"]["embedding"]
    assert all((np.abs(table - row).max(axis=1) == 0).any() for row in prompt)


def test_a_path_says_the_step_at_which_it_ends():
    from adalink_jax.errors import UserError
    from adalink_jax.t5x.checkpoints import steps_before

    assert steps_before("gs://t5/flan/checkpoint_1184000/") == 1184000
    with pytest.raises(UserError, match="runs/rte is not the path of a T5X checkpoint, …/checkpoi"):
        steps_before("runs/rte")


def test_a_target_that_is_not_read_yet_is_an_array(tree, adalink):
    """T5X hands over specifications of TensorStore, which are dicts, for arrays that lie apart."""
    import jax

    from adalink_jax.t5x.checkpoints import check_restored

    held, wanted = tree(adalink)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "x"}, "metadata": {}}
    held = {"target": jax.tree.map(lambda _: spec, held["target"]), "state": {"step": 7}}
    assert check_restored(held, wanted, method=adalink, base_path="BASE") is held


def params_of(method):
    """Parameters of base and adapter, the same for T5X and for us."""
    from adalink_jax.models.parameters import abstract_params

    return recorded.parameters(abstract_params(recorded.config("1.1"), method)[0])


def check_extracted(checkpoint, adalink, folder):
    """The adapter in T5X's checkpoint, in its folder, is what T5X was given."""
    from adalink_jax.checkpoints import fingerprint, load_adapter
    from adalink_jax.errors import UserError
    from adalink_jax.methods.base import split
    from adalink_jax.methods.lora import LoRA
    from adalink_jax.t5x.checkpoints import extract_adapter

    extract_adapter(str(checkpoint), adalink, str(folder), "some_task")
    adapter, base = split(params_of(adalink), adalink)
    found = load_adapter(
        folder / "adapter",
        architecture=recorded.config("1.1"),
        base_fingerprint=fingerprint(base),
        method_name="adalink",
    )
    assert found.metadata == {"t5x_step": 0, "data": {"name": "some_task"}}
    for name in ("down", "up"):
        one, other = (tree["encoder"]["adalink"][name] for tree in (found.tree, adapter))
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="holds no parameters of LoRA"):
        extract_adapter(str(checkpoint), LoRA(rank=2), str(folder), "some_task")


def test_a_recorded_checkpoint_gives_its_adapter_back(adalink, tmp_path):
    with tarfile.open(ARCHIVE) as files:
        files.extractall(tmp_path / "saved", filter="data")
    check_extracted(tmp_path / "saved" / "checkpoint_0", adalink, tmp_path)


@pytest.mark.usefixtures("update_goldens")
@pytest.mark.parametrize("form", ["native", "orbax"])
def test_a_checkpoint_gives_its_adapter_back(form, model, padded, adalink, tmp_path, request):
    """Written by T5X in either form, with optimizer states, read by this project."""
    import jax
    from flax import core, traverse_util
    from t5x import adafactor, checkpoints, optimizers, partitioning, utils

    from adalink_jax.t5x.optimizers import trainable

    own = traverse_util.ModelParamTraversal(trainable(adalink))
    optimizer = optimizers.MultiOptimizer(((own, adafactor.Adafactor(factored=False)),))
    ours, batch = model("1.1", adalink, optimizer), padded(2)
    rules = [(axis, None) for axis in ("routes", "adapter_embed", "rank")]
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1,
        logical_axis_rules=partitioning.standard_logical_axis_rules(additional_rules=rules),
    )
    start = utils.TrainStateInitializer(
        optimizer_def=optimizer,
        init_fn=ours.get_initial_variables,
        input_shapes={name: value.shape for name, value in batch.items()},
        partitioner=partitioner,
    )
    state = start.from_scratch(jax.random.PRNGKey(0))
    state = state.replace_params(core.freeze(jax.tree.map(jax.numpy.asarray, params_of(adalink))))
    saved = str(tmp_path / "saved")
    (tmp_path / "saved").mkdir()
    if form == "native":
        checkpoints.Checkpointer(state, partitioner, saved).save(state)
    else:
        manager = checkpoints.OrbaxCheckpointManagerInterface(saved, state, partitioner)
        manager.save(state)
        manager.close()
        if request.config.getoption("--update-goldens"):
            with tarfile.open(ARCHIVE, "w:xz") as files:
                files.add(f"{saved}/checkpoint_0", "checkpoint_0")
    check_extracted(f"{saved}/checkpoint_0", adalink, tmp_path)
