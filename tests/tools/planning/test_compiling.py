"""What a step is given, by hand and by libtpu's own devices; one step compiled, where it can be."""

import dataclasses
import importlib.util

import jax
import pytest

from adalink_jax.distributed import sharding
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.parameters import init_adapter, init_base
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import Shape, parameters
from adalink_jax.tools.planning import topologies
from adalink_jax.tools.planning.compiling import Case, Prepared, Program, optimizer_of
from adalink_jax.training.optimizers import adafactor, per_module
from adalink_jax.training.state import abstract_state, create
from tests.tiers import mostly_slow

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=32,
    mlp_dim=256,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)
RANK = 4
ADALINK = Case(
    model="some",
    config=CONFIG,
    label="adalink",
    method=METHODS["adalink"](rank=RANK),
    topology=topologies.find("v5e:1x1"),
    layout=Layout(),
    shape=Shape(batch=8, inputs=16, targets=4),
    frozen_dtype="bfloat16",
)
FULL = dataclasses.replace(ADALINK, label="full", method=METHODS["full"](), frozen_dtype="float32")


@pytest.fixture(autouse=True)
def without_flags_of_cpus(monkeypatch):
    """A libtpu that does not know one of XLA's flags ends the process."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)


def matrices(config: T5Config) -> int:
    """Elements of all that is fully sharded: tables of tokens and logits, and kernels."""
    width = config.num_heads * config.head_dim
    layer = 4 * config.emb_dim * width + 2 * config.emb_dim * config.mlp_dim
    cross = 4 * config.emb_dim * width
    return config.num_encoder_layers * layer + config.num_decoder_layers * (layer + cross)


def test_arguments_of_one_chip_are_the_hand_calculation():
    base = parameters(CONFIG, METHODS["full"]()).total
    adapter = 2 * CONFIG.emb_dim * RANK
    given = Prepared(ADALINK, jax.devices()[:1]).arguments
    assert given.frozen == 2 * base
    assert given.trainable == 4 * adapter
    # Unfactored, a second moment for each parameter, beside counts and empty factors.
    assert 4 * adapter <= given.optimizer <= 4 * adapter + 256
    # Tokens and routes of the input; tokens, targets, routes and weights of the target.
    assert given.batch == 4 * 8 * (2 * 16 + 4 * 4)
    given = Prepared(FULL, jax.devices()[:1]).arguments
    assert (given.trainable, given.frozen) == (4 * base, 0)
    adamw = Prepared(dataclasses.replace(FULL, optimizer="adamw"), jax.devices()[:1]).arguments
    assert 8 * base <= adamw.optimizer <= 8 * base + 256
    assert given.optimizer < adamw.optimizer / 20


def test_mistakes_are_said():
    with pytest.raises(UserError, match="optimizer is 'adamm'.*did you mean 'adamw'"):
        optimizer_of(dataclasses.replace(ADALINK, optimizer="adamm"))
    prepared = Prepared(ADALINK, jax.devices()[:1])
    with pytest.raises(UserError, match="optimization_level is 'O9'; it takes one of default"):
        prepared.compile("O9")
    with pytest.raises(UserError, match="batch is 8, which 3 parts"):
        Prepared(dataclasses.replace(ADALINK, accumulation=3), jax.devices()[:1])


@pytest.mark.parametrize(
    ("case", "scanned"),
    mostly_slow(
        [(case, scanned) for case in (ADALINK, FULL) for scanned in (True, False)],
        [(ADALINK, True), (FULL, False)],
    ),
    ids=lambda value: value.label if isinstance(value, Case) else f"scanned {value}",
)
def test_the_abstract_state_is_that_of_a_run(case, scanned):
    config = dataclasses.replace(CONFIG, scan_layers=scanned)
    mesh = sharding.make_mesh()
    rule = adafactor(lambda step: 1e-3, multiply_by_parameter_scale=True, factored=True)
    optimizer = per_module(rule, case.method)
    base = init_base(config, jax.random.key(0))
    adapter = init_adapter(config, case.method, base, jax.random.key(1))
    laid_out = (mesh, sharding.WHOLE, case.frozen_dtype)
    with sharding.on_mesh(mesh):
        state = create(config, case.method, base, adapter, optimizer, *laid_out)
        abstract = abstract_state(config, case.method, optimizer, *laid_out)
    seen, expected = (
        [
            (jax.tree_util.keystr(path), leaf.shape, leaf.dtype, leaf.sharding)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]
        for tree in (abstract, state)
    )
    assert seen == expected


@pytest.mark.parametrize(
    ("case", "share", "again"),
    [
        (ADALINK, 0.9, False),
        (ADALINK, 0.92, True),
        (ADALINK, 1.03, True),
        (ADALINK, 1.06, False),
        # Its weights are cast, which costs more at some levels than at others.
        (FULL, 0.75, False),
        (FULL, 0.8, True),
        (dataclasses.replace(ADALINK, frozen_dtype="int8"), 0.8, True),
    ],
)
def test_what_comes_close_is_compiled_as_a_run_is(monkeypatch, case, share, again):
    asked = []

    def compiled(prepared, level):
        asked.append(level)
        peak = int(share * prepared.case.topology.chip.allowed_bytes)
        return Program(level, share < 1, peak, 2.0, 1.0, (), None)

    monkeypatch.setattr(Prepared, "compile", compiled)
    program = Prepared(case, jax.devices()[:1]).decided("O1")
    assert asked == ["O1", *["default"] * again] and program.level == asked[-1]
    assert program.seconds == 2 * len(asked)


@needs_libtpu
def test_fully_sharded_every_chip_has_its_part_of_the_matrices():
    topology = topologies.find("v5e:2x2")
    case = dataclasses.replace(FULL, topology=topology, layout=Layout(fully_sharded=True))
    given = Prepared(case, topology.devices()).arguments
    base = parameters(CONFIG, case.method).total
    split = matrices(CONFIG) + 2 * CONFIG.vocab_size * CONFIG.emb_dim
    assert given.parameters == 4 * (split // 4 + base - split)
    assert given.batch == 4 * 2 * (2 * 16 + 4 * 4)


@needs_libtpu
def test_a_step_is_compiled_for_chips_that_are_not_here():
    topology = topologies.find("v5e:2x2")
    case = dataclasses.replace(ADALINK, topology=topology, layout=Layout(fully_sharded=True))
    prepared = Prepared(case, topology.devices())
    program = prepared.compile("O1")
    assert program.fits and len(program.buffers) == 3
    assert prepared.arguments.total < program.peak_bytes < 2**30
    # Every kernel is gathered at least forwards, again and backwards, in bfloat16.
    gathered = program.traffic["all-gather"].sent_bytes
    assert gathered >= 2 * 2 * matrices(CONFIG) * 3 // 4


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_for_several_slices():
    """Matrices are gathered within a slice; what adapters learn is summed over both."""
    from jax.experimental import topologies as descriptions

    topology = topologies.find("v5e:2x2")
    sent = []
    for slices in (1, 2):
        devices = descriptions.get_topology_desc(
            platform="tpu", topology_name=topology.name, num_slices=slices
        ).devices
        layout = Layout(fully_sharded=True, slices=slices)
        case = dataclasses.replace(ADALINK, topology=topology, layout=layout)
        sent.append(Prepared(case, devices).compile("O1").traffic)
    assert sent[0]["all-gather"] == sent[1]["all-gather"]
    assert 0 < sent[0]["all-reduce"].sent_bytes < sent[1]["all-reduce"].sent_bytes
