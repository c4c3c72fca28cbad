"""A method that trains parts of the base, its norms, beside parameters of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.adapters import inspect, load
from adalink_jax.checkpoints import fingerprint, load_adapter, load_base, save_adapter
from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import parameters
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools.serving import bank
from adalink_jax.training import optimizers, state, step
from tests.methods.toys import Norms
from tests.tiers import mostly_slow

METHOD_OF = {"all": Norms(routes=3), "one layer's": Norms(routes=3, within="layers_1")}
RATE = optimizers.factors(base_learning_rate=0.01)
RULE = optimizers.adafactor(RATE, multiply_by_parameter_scale=False, factored=False)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(METHODS, "norms", Norms)


def flat(tree) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(jax.device_get(dict(tree)), sep="/")


def forward(config, method, params, batch):
    arrays = {name: batch[name] for name in batch if name != "decoder_loss_weights"}
    apply = jax.jit(Transformer(config, method).apply, static_argnames="enable_dropout")
    return apply({"params": params}, **arrays, enable_dropout=False)


def trained(tiny, method, scan_layers, steps=3):
    """The state before and after some steps."""
    config, base, batch = tiny
    config = dataclasses.replace(config, scan_layers=scan_layers)
    mesh, optimizer = sharding.make_mesh(), optimizers.per_module(RULE, method)
    adapter = parameters.init_adapter(config, method, base, jax.random.key(3))
    with sharding.on_mesh(mesh):
        before = after = state.create(config, method, base, adapter, optimizer, mesh)
        model = Transformer(config, method)
        train_step = jax.jit(step.make_train_step(model, optimizer, RATE))
        for _ in range(steps):
            after, _ = train_step(after, batch, jax.random.key(0))
    return before, after


@pytest.fixture(scope="module", params=mostly_slow(METHOD_OF, ["one layer's"]))
def runs(request, tiny):
    """A method, and its state before and after training: layers one by one, and scanned."""
    method = METHOD_OF[request.param]
    return method, trained(tiny, method, False), trained(tiny, method, True)


def test_what_is_unlocked_starts_from_the_base_and_trains(runs, tiny):
    method, (before, after), _ = runs
    base, started, ended = flat(tiny[1]), flat(before.trainable), flat(after.trainable)
    unlocked = [name for name in started if not method.owns(name)]
    assert len(unlocked) == (2 if method.within else 9)
    for name in unlocked:
        np.testing.assert_array_equal(started[name], base[name])
        assert np.any(ended[name] != base[name]), name
    assert base.keys() - flat(before.frozen).keys() == {*unlocked}
    for name, leaf in flat(after.frozen).items():
        np.testing.assert_array_equal(leaf, base[name])


def test_scanned_layers_train_the_same(runs, tiny):
    method, (_, apart), (before, scanned) = runs
    assert "layers" in before.frozen["encoder"]
    expected = flat(apart.trainable)
    for name, leaf in flat(scanned.trainable).items():
        np.testing.assert_allclose(leaf, expected[name], atol=2e-5, err_msg=name)
    config = dataclasses.replace(tiny[0], scan_layers=True)
    one, other = (
        forward(c, method, merge(s.frozen, s.trainable), tiny[2])
        for c, s in ((tiny[0], apart), (config, scanned))
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.abs(one - forward(tiny[0], Method(), *tiny[1:])).max() > 1e-3
    again = before.restored(scanned.saved())
    jax.tree.map(np.testing.assert_array_equal, again.trainable, scanned.trainable)


def test_a_route_is_updated_by_itself_and_the_base_as_it_is(runs):
    method, (before, _), _ = runs
    names = flat(before.trainable)
    params = {n: jnp.asarray(leaf) for n, leaf in names.items()}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    optimizer = optimizers.per_module(RULE, method)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name, grad in grads.items():
        parts = [grad] if not method.owns(name) else list(grad)
        alone = [RULE.update(g, RULE.init(g), g)[0] for g in parts]
        expected = alone[0] if not method.owns(name) else jnp.stack(alone)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5, err_msg=name)


def test_the_state_of_other_methods_is_what_it_was():
    """Checkpoints of runs before know of no division."""
    params = {"encoder": {"adalink": {"down": jnp.ones((3, 4, 2))}}}
    state = optimizers.per_module(RULE, METHODS["adalink"](rank=2, routes=3)).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(jax.vmap(RULE.init)(params))


def test_saved_loaded_verified_and_not_folded(runs, tiny, write_base, tmp_path, capsys):
    method, (_, after), _ = runs
    config, (stored, tree) = tiny[0], method.export(jax.device_get(after.trainable))
    base_folder = write_base(config)
    _, base = load_base(base_folder)
    # The random base of the folder is another: what was trained goes on top of it.
    save_adapter(
        tmp_path / "adapter",
        tree,
        method_name="norms",
        settings=dataclasses.asdict(stored),
        architecture=config,
        base_fingerprint=fingerprint(base),
        route_names=["a", "b", "c"],
        metadata={},
    )
    loaded = load_adapter(tmp_path / "adapter")
    assert flat(loaded.tree).keys() == flat(tree).keys()
    adaptation = load.load_adaptation(str(tmp_path / "adapter"), str(base_folder))
    norm = adaptation.params["encoder"]["layers_1"]["pre_mlp_layer_norm"]["scale"]
    np.testing.assert_array_equal(norm, tree["encoder"]["layers_1"]["pre_mlp_layer_norm"]["scale"])
    assert inspect.verify(str(tmp_path / "adapter"), str(base_folder)) == 0
    assert capsys.readouterr().out.count("largest change of a logit") == 3
    with pytest.raises(UserError, match="'norms' cannot be folded into its base"):
        adaptation.folded(0)


def test_it_shares_no_batch_and_is_no_route_among_others(runs):
    method, (_, after), _ = runs
    with pytest.raises(UserError, match="'norms': it cannot share a batch"):
        bank.module(method, after.trainable, 0, 16)
    with pytest.raises(UserError, match="cannot be a route among others: it holds .*norm/scale"):
        method.stack([after.trainable, after.trainable])
    one, tree = method.one_route(after.trainable, 1)
    assert one.routes == 1
    for name, leaf in flat(tree).items():
        whole = flat(after.trainable)[name]
        np.testing.assert_array_equal(leaf, whole[1:2] if method.owns(name) else whole)
