"""Fixtures shared by all tests."""

import functools
import gc
import importlib.metadata
import json
import os
import pathlib
import signal
import time

import pytest

# Before jax or TensorFlow is imported anywhere, here and in the processes that tests start: tests
# run on the CPU, quietly.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests spend their time compiling tiny models. Without LLVM's optimisations this takes half of the
# time, and without XLA's emitters of fused loops and its parallel code generation half of that. An
# XLA that does not know a flag ends the process, so the last two are set where they were tested.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)
# What XLA compiled is kept: for the other worker, for processes that tests start, for next time.
CACHE = pathlib.Path("~/.cache/adalink_jax/tests_xla").expanduser()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all processes
# that they start.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the checkout; skips where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real data not found at {path.parent.name}/{path.name} beside the checkout")
    return path


def pytest_collection_finish(session):
    """Leaves modules and collected tests to no later garbage collection, which walks them all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish(session):
    """Deletes what XLA compiled for tests and was written a month ago."""
    if hasattr(session.config, "workerinput"):
        return
    for path in CACHE.glob("*"):
        if path.stat().st_mtime < time.time() - 30 * 24 * 3600:
            path.unlink(missing_ok=True)


def pytest_addoption(parser):
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/golden/")


@pytest.fixture
def update_goldens(request):
    """Compares a value with tests/golden/NAME, or rewrites it with --update-goldens.

    The value is JSON-able, or, for a name that ends in .npz, arrays by name, which are compared up
    to a tolerance.
    """

    def compare(name: str, value, tolerance: float = 0.0) -> None:
        path = ROOT / "tests" / "golden" / name
        if name.endswith(".npz"):
            return compare_arrays(path, value, tolerance)
        text = json.dumps(value, indent=1, sort_keys=True) + "\n"
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(text)

    def compare_arrays(path: pathlib.Path, arrays, tolerance: float) -> None:
        import numpy as np

        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **arrays)
        with np.load(path) as stored:
            assert set(stored) == set(arrays)
            for name in stored:
                expected = stored[name]
                np.testing.assert_allclose(
                    arrays[name], expected, atol=tolerance, rtol=tolerance, err_msg=name
                )

    return compare


@pytest.fixture(scope="session")
def golden(shared_data):
    """Loads a golden checkpoint of T5X: name -> (config, params, expected arrays)."""
    import numpy as np

    from adalink_jax.checkpoints import load_base

    @functools.cache
    def load(name: str):
        folder = shared_data / "golden" / name
        config, params = load_base(folder / "checkpoint_0")
        with np.load(folder / "expected.npz") as arrays:
            return config, params, dict(arrays)

    return load


@pytest.fixture(scope="session")
def tiny():
    """A tiny T5 1.1 of random weights and one padded batch: (config, base, batch)."""
    import jax
    import numpy as np

    from adalink_jax.models.parameters import init_base
    from adalink_jax.models.t5 import T5Config

    config = T5Config(
        vocab_size=48,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=24,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
    )
    base = init_base(config, jax.random.key(7))
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 48, (4, 9)).astype(np.int32)
    targets = rng.integers(3, 48, (4, 5)).astype(np.int32)
    inputs[1, 6:] = inputs[3, 2:] = targets[1, 3:] = targets[2, 4:] = 0
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1] * (targets > 0),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.float32),
        "encoder_routes": np.repeat(np.array([[0], [2], [1], [0]], np.int32), 9, axis=1),
        "decoder_routes": np.repeat(np.array([[0], [2], [1], [0]], np.int32), 5, axis=1),
    }
    return config, base, batch


@pytest.fixture(scope="session")
def write_base(tmp_path_factory):
    """Writes a base of random weights, config -> its folder."""
    import jax

    from adalink_jax.checkpoints import fingerprint, save_adapter
    from adalink_jax.models.parameters import init_base

    def write(config) -> pathlib.Path:
        params = jax.device_get(init_base(config, jax.random.key(0)))
        folder = tmp_path_factory.mktemp("base")
        save_adapter(
            folder,
            params,
            method_name="full",
            settings={},
            architecture=config,
            base_fingerprint=fingerprint(params),
            route_names=["all"],
            metadata={},
        )
        return folder

    return write


@pytest.fixture(scope="session")
def mini_base(write_base) -> pathlib.Path:
    """A folder with a base of random weights for the mini world's vocabulary."""
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
    return write_base(config)


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory) -> pathlib.Path:
    """A cache of token arrays for the whole session, none of the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def write_adapter(tmp_path_factory):
    """Writes an adapter whose matrices are random, none zero: (method, base folder) -> folder."""

    import jax
    import numpy as np

    from adalink_jax.checkpoints import fingerprint, load_base, save_adapter
    from tests.methods.toys import blank

    def write(method, base_folder, *, seed=0, scale=0.1, routes=None, change=lambda tree: tree):
        config, base = load_base(base_folder)
        tree = base if method.trains_base else blank(config, method)
        method, tree = method.export(tree)
        rng = np.random.default_rng(seed)
        tree = jax.tree.map(
            lambda x: (x * method.trains_base + scale * rng.standard_normal(x.shape)).astype("f"),
            tree,
        )
        folder = tmp_path_factory.mktemp("adapted") / "adapter"
        count = method.routes
        save_adapter(
            folder,
            change(tree),
            method_name=method.scope,
            settings=method.settings(),
            architecture=config,
            base_fingerprint=fingerprint(base),
            route_names=routes or [f"task_{i}" for i in range(count)],
            metadata={"scores": {"rte": 61.0}, "train_steps": 3},
        )
        return folder

    return write


@pytest.fixture(scope="session")
def torch_t5():
    """Makes transformers' T5 of a base, (config, params) -> module; skips without PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import numpy as np
    from flax import traverse_util

    from adalink_jax.checkpoints.formats.huggingface import tensor_names

    def make(config, params):
        gated = len(config.mlp_activations) == 2
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=config.vocab_size,
                d_model=config.emb_dim,
                d_kv=config.head_dim,
                d_ff=config.mlp_dim,
                num_layers=config.num_encoder_layers,
                num_decoder_layers=config.num_decoder_layers,
                num_heads=config.num_heads,
                feed_forward_proj="gated-gelu" if gated else "relu",
                tie_word_embeddings=config.logits_via_embedding,
                decoder_start_token_id=0,
                pad_token_id=0,
                eos_token_id=1,
            )
        ).eval()
        # transformers 5 scales and ties the output whatever the configuration says.
        model.config.scale_decoder_outputs = config.logits_via_embedding
        if not config.logits_via_embedding:
            model.lm_head = torch.nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        flat = traverse_util.flatten_dict(dict(params), sep="/")
        state = {}
        for name, (torch_name, transposed) in tensor_names(config).items():
            array = np.asarray(flat[name], np.float32)
            state[torch_name] = torch.tensor(array.T if transposed else array)
        for table in ("encoder.embed_tokens", "decoder.embed_tokens"):
            state.setdefault(f"{table}.weight", state["shared.weight"])
        if config.logits_via_embedding:
            state["lm_head.weight"] = state["shared.weight"]
        if config.separate_encoder_embedding:
            model.encoder.embed_tokens = torch.nn.Embedding(config.vocab_size, config.emb_dim)
        model.load_state_dict(state)
        return model

    return make
