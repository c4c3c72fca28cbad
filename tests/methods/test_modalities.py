"""Methods on images and text: a module each, one for both, and the projection alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from adalink_jax.adapters.probe import fixed_images, fixed_inputs
from adalink_jax.checkpoints import save_adapter
from adalink_jax.checkpoints.adapter_record import AdapterRecord
from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge, split
from adalink_jax.models.parameters import abstract_params, init_adapter
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.cost import counts
from adalink_jax.tools.serving import bank
from adalink_jax.training.step import loss_fn
from tests.methods.test_fold import flat, random_adapter
from tests.methods.toys import blank

WIDTH, D = 6, 16
CONFIG = T5Config(
    vocab_size=40, emb_dim=D, num_heads=2, head_dim=8, num_encoder_layers=1, num_decoder_layers=1,
    mlp_dim=24, mlp_activations=("gelu", "linear"), dropout_rate=0.0, image_width=WIDTH,
)  # fmt: skip
TEXT = dataclasses.replace(CONFIG, image_width=None)
SEPARATE = METHODS["adalink"](rank=3, by_modality=True)
UNIFIED = METHODS["adalink"](rank=6)
UNEQUAL = dataclasses.replace(SEPARATE, image_rank=5)


@functools.cache
def base():
    rng = np.random.default_rng(7)
    tree, _ = abstract_params(CONFIG, Method())
    return jax.tree.map(lambda x: rng.normal(0, 0.15, x.shape).astype(np.float32) + (x.ndim == 1),
                        tree)  # fmt: skip


@functools.cache
def given():
    inputs, targets = fixed_inputs(CONFIG.vocab_size)
    return inputs, targets, fixed_images(WIDTH)


@functools.cache
def forward(config, method):
    model = Transformer(config, method)

    @jax.jit
    def apply(params, inputs, targets, images, routes):
        of = {"encoder_routes": inputs, "decoder_routes": targets}
        of = {name: 0 * like + routes[:, None] for name, like in of.items()}
        return model.apply(
            {"params": params}, inputs, targets, targets, **images, **of, enable_dropout=False
        )

    return apply


def logits(params, method=None, routes=(0, 0), config=CONFIG, images=True):
    inputs, targets, of_images = given()
    of_images = of_images if images else {}
    arguments = (params, inputs, targets, of_images, np.asarray(routes, np.int32))
    return np.asarray(forward(config, method or Method())(*arguments))


def by_hand(tree, method, route=0):
    """The base whose table and projection hold AdaLink's modules, in float64 NumPy."""
    apart = method.image_rank is not None
    image = 2 * route + 1 if method.by_modality and not apart else route
    text = 2 * route if method.by_modality and not apart else route

    def adapted(x, place, shifts=1.0, scope="adalink"):
        leaves = {n: np.asarray(x, np.float64) for n, x in tree["encoder"][scope].items()}
        inner = x @ leaves["down"][place]
        if method.bias:
            inner = inner + shifts * leaves["down_bias"][place]
        added = inner @ leaves["up"][place]
        return x + added + (shifts * leaves["up_bias"][place] if method.bias else 0)

    table = base()["token_embedder"]["embedding"].astype(np.float64)
    old = base()["encoder"]["image_projection"]
    scope = "adalink_images" if apart else "adalink"
    projection = {"kernel": adapted(old["kernel"].astype(np.float64), image, 0.0, scope),
                  "bias": adapted(old["bias"].astype(np.float64), image, 1.0, scope)}  # fmt: skip
    own = {"token_embedder": {"embedding": adapted(table, text)}, "image_projection": projection}
    return jax.tree.map(np.float32, {**base(), "encoder": {**base()["encoder"], **own}})


OWN_TABLE = dataclasses.replace(CONFIG, separate_encoder_embedding=True)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(SEPARATE, id="separate", marks=pytest.mark.slow),
        pytest.param(UNIFIED, id="unified", marks=pytest.mark.slow),
        pytest.param(UNEQUAL, id="of unequal ranks"),
        pytest.param(
            dataclasses.replace(UNEQUAL, routes=2, bias=True), id="of two tasks and unequal ranks",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dataclasses.replace(SEPARATE, routes=2, bias=True), id="of two tasks, with biases",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_adalink_of_images_is_in_the_projection_and_that_of_text_in_the_table(method):
    """Each modality has its own module: the folded base, made by hand, is a plain one."""
    tree, route = random_adapter(CONFIG, method), method.routes - 1
    expected = by_hand(tree, method, route)
    found = logits(merge(base(), tree), method, (route, route))
    np.testing.assert_allclose(found, logits(expected, config=OWN_TABLE), atol=1e-4)
    assert np.abs(found - logits(base())).max() > 1e-2
    folded = method.fold(base(), tree, route)
    for name, leaf in flat(expected).items():
        np.testing.assert_allclose(flat(folded)[name], leaf, atol=1e-5, err_msg=name)


def test_separate_and_unified_have_equally_many_parameters():
    assert counts.stored_parameters(CONFIG, SEPARATE) == counts.stored_parameters(CONFIG, UNIFIED)
    assert blank(CONFIG, SEPARATE)["encoder"]["adalink"]["down"].shape == (2, D, 3)
    assert counts.stored_parameters(CONFIG, UNEQUAL) == 2 * D * (3 + 5)
    assert counts.stored_parameters(CONFIG, UNEQUAL.resized(1)) == 2 * D * (1 + 5)


def test_equal_ranks_that_are_said_are_the_same_numbers_in_other_places():
    """The modules of two scopes, side by side in one."""
    said, tree = dataclasses.replace(SEPARATE, image_rank=3), random_adapter(CONFIG, SEPARATE)
    leaves = tree["encoder"]["adalink"]
    apart = {"adalink": 0, "adalink_images": 1}
    apart = {s: {n: x[i : i + 1] for n, x in leaves.items()} for s, i in apart.items()}
    found = logits(merge(base(), {"encoder": apart}), said)
    np.testing.assert_allclose(found, logits(merge(base(), tree), SEPARATE), atol=1e-6)


def test_an_image_rank_is_of_a_module_for_images():
    for name in ("adalink", "lora"):
        with pytest.raises(UserError, match="image_rank is 2, but .*by_modality is False"):
            METHODS[name](rank=2, image_rank=2)
        method = METHODS[name](rank=2, by_modality=True)
        assert "image_rank" not in method.settings()
        method = dataclasses.replace(method, image_rank=4)
        assert METHODS[name](**method.settings()) == method


def test_an_activation_is_not_in_a_projection():
    method = dataclasses.replace(UNIFIED, activation="relu")
    with pytest.raises(UserError, match="projection, which is linear"):
        method.fold(base(), random_adapter(CONFIG, method), 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["translation", "embedding_lora"])
def test_other_methods_of_the_input_fold_with_images(name):
    method = METHODS[name](**({} if name == "translation" else {"rank": 2}))
    tree = random_adapter(CONFIG, method)
    found = logits(method.fold(base(), tree, 0), config=OWN_TABLE)
    np.testing.assert_allclose(found, logits(merge(base(), tree), method), atol=1e-4)


def test_an_invertible_adapter_does_not_fold_with_images():
    method = METHODS["invertible"]()
    with pytest.raises(UserError, match="projection of images"):
        method.fold(base(), random_adapter(CONFIG, method), 0)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(SEPARATE, id="adalink", marks=pytest.mark.slow),
        pytest.param(UNEQUAL, id="adalink of unequal ranks"),
        *(
            pytest.param(
                METHODS["lora"](rank=2, by_modality=True, linears=("mlp/*",), image_rank=rank),
                id=f"lora {rank}",
                marks=pytest.mark.slow,
            )
            for rank in (None, 3)
        ),
    ],
)
def test_routes_are_tasks_and_each_has_its_modalities(method):
    """A batch of two tasks is each alone; adapters stack, split and share a bank bit for bit."""
    trees = [random_adapter(CONFIG, method, seed) for seed in range(2)]
    both, stacked = method.stack(trees)
    assert both == dataclasses.replace(method, routes=2)
    for route, tree in enumerate(trees):
        one, again = both.one_route(stacked, route)
        assert one == method
        for name, leaf in flat(tree).items():
            np.testing.assert_array_equal(flat(again)[name], leaf)
    alone = [logits(merge(base(), tree), method, (5, 3)) for tree in trees]  # Routes of no matter.
    mixed = logits(merge(base(), stacked), both, (1, 0))
    np.testing.assert_allclose(mixed, [alone[1][0], alone[0][1]], atol=1e-5)
    # One of a smaller rank shares the bank.
    small = method.resized(1)
    modules = [bank.module(small, random_adapter(CONFIG, small, 5), 0, 16)]
    modules += [bank.module(method, tree, 0, 16) for tree in trees]
    assert len({module.kind for module in modules}) == 1
    of_three = bank.Bank(CONFIG, modules[0].kind, 3)
    for module in modules:
        of_three.load(module)
    routes = [of_three.slot(module) for module in (modules[2], modules[1])]
    found = logits(merge(base(), of_three.params), of_three.method, routes)
    np.testing.assert_allclose(found, mixed, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("image_rank", [None, 3])
def test_lora_by_modality_is_one_product_for_each(image_rank):
    """At one site: y + s · x · A · B, with the matrices of each token's modality, in NumPy."""
    seen = {}

    @dataclasses.dataclass(frozen=True)
    class Looks(METHODS["lora"]):
        def linear(self, x, y, kernel, site, ctx):
            result = super().linear(x, y, kernel, site, ctx)
            if site.linear == "attention/query" and site.stack == "encoder":
                seen.update(x=x, y=y, result=result)
            return result

    method = Looks(
        rank=2, alpha=3.0, by_modality=True, linears=("attention/query",), image_rank=image_rank
    )
    tree = random_adapter(CONFIG, method)
    inputs, _, images = given()

    @jax.jit
    def encode(params):
        Transformer(CONFIG, method).apply(
            {"params": params}, inputs, enable_dropout=False, method="encode", **images
        )
        return seen

    found = encode(merge(base(), tree))
    query = tree["encoder"]["layers_0"]["attention"]["query"]
    count = images["encoder_images"].shape[1]
    of_images = ("lora", 1) if image_rank is None else ("lora_images", 0)
    for (scope, modality), part in ((of_images, slice(count)), (("lora", 0), slice(count, None))):
        leaves = query[scope]
        x, y = (np.asarray(found[name])[:, part] for name in ("x", "y"))
        expected = y + 1.5 * (x @ leaves["down"][modality]) @ leaves["up"][modality]
        np.testing.assert_allclose(np.asarray(found["result"])[:, part], expected, atol=1e-5)
    with pytest.raises(UserError, match="share each kernel"):
        method.fold(base(), tree, 0)


def gradients(method, tree, images):
    """The gradients of a batch's loss at a method's tree."""
    inputs, targets, of_images = given()
    batch = {
        "encoder_input_tokens": inputs, "decoder_input_tokens": targets,
        "decoder_target_tokens": targets, "decoder_loss_weights": np.ones(targets.shape, "f4"),
        **(of_images if images else {}),
    }  # fmt: skip

    def loss(tree):
        return loss_fn(Transformer(CONFIG, method), tree, base(), batch, None, 0.0, 0.0)[0]

    return flat(jax.jit(jax.grad(loss))(tree))


@pytest.mark.slow
def test_text_alone_teaches_the_image_module_nothing():
    tree = random_adapter(CONFIG, SEPARATE)
    for images in (True, False):
        for leaf in gradients(SEPARATE, tree, images).values():
            assert np.abs(leaf[0]).max() > 0 and bool(np.abs(leaf[1]).max() > 0) == images
        for name, leaf in gradients(UNEQUAL, random_adapter(CONFIG, UNEQUAL), images).items():
            assert bool(np.abs(leaf).max() > 0) == (images or "adalink_images" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SEPARATE, UNEQUAL], ids=["equal", "unequal"])
def test_a_new_adapter_is_the_base(method):
    tree = init_adapter(CONFIG, method, base(), jax.random.key(0))
    np.testing.assert_array_equal(logits(merge(base(), tree), method), logits(base()))
    down = flat(tree)
    assert all((np.abs(leaf).max() > 0) == name.endswith("down") for name, leaf in down.items())


def test_the_projection_alone_trains_and_folds():
    method = METHODS["projection"]()
    tree = init_adapter(CONFIG, method, base(), jax.random.key(0))
    assert {*flat(tree)} == {f"encoder/image_projection/{n}" for n in ("kernel", "bias")}
    np.testing.assert_array_equal(
        flat(tree)["encoder/image_projection/kernel"],
        base()["encoder"]["image_projection"]["kernel"],
    )
    trained = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, tree)
    folded = method.fold(base(), trained, 0)
    np.testing.assert_array_equal(logits(folded), logits(merge(base(), trained), method))
    changed = {n for n, leaf in flat(folded).items() if not np.array_equal(leaf, flat(base())[n])}
    assert changed == {*flat(tree)}


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_adalink_with_a_trained_projection_folds_in_either_order(turned):
    """R images of W' + W' · A · U, whichever part comes first."""
    parts = (METHODS["projection"](), UNEQUAL)
    method = METHODS["compose"](parts=parts[::-1] if turned else parts)
    tree = random_adapter(CONFIG, method)
    assert "image_projection" in tree["encoder"] and "adalink" in tree["encoder"]
    found = logits(method.fold(base(), tree, 0), config=OWN_TABLE)
    np.testing.assert_allclose(found, logits(merge(base(), tree), method), atol=1e-4)


@pytest.mark.parametrize("name", ["full", "projection", "adalink"])
def test_what_trains(name):
    method = SEPARATE if name == "adalink" else METHODS[name]()
    trainable, frozen = split(abstract_params(CONFIG, method)[0], method)
    assert ("encoder/image_projection/kernel" in flat_names(trainable)) == (name != "adalink")
    assert bool(flat_names(frozen)) == (name != "full")


def flat_names(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


@pytest.mark.parametrize("name", ["adalink", "lora", "projection", "compose"])
def test_a_base_of_text_is_refused(name):
    method = {
        "adalink": SEPARATE, "lora": METHODS["lora"](rank=2, by_modality=True),
        "projection": METHODS["projection"](), "compose": METHODS["compose"](parts=(SEPARATE,)),
    }[name]  # fmt: skip
    with pytest.raises(UserError, match="adapts images, but the base reads text alone"):
        abstract_params(TEXT, method)


@pytest.mark.parametrize("name", ["adalink", "lora"])
def test_the_decoder_has_no_images(name):
    with pytest.raises(UserError, match=r"images are in the encoder alone"):
        METHODS[name](rank=2, by_modality=True, stacks=("encoder", "decoder"))


def test_an_adapter_of_another_kind_of_base_is_refused(tmp_path):
    for ours, theirs in ((CONFIG, TEXT), (TEXT, CONFIG)):
        record = AdapterRecord("adalink", {"rank": 2}, ("all",), {}, ours, "0")
        with pytest.raises(UserError, match="another base: image_width") as caught:
            record.check_base("folder", architecture=theirs)
        assert "\n" not in str(caught.value)


def test_records_of_text_have_no_field_of_images(tmp_path):
    method = METHODS["adalink"](rank=2)
    save_adapter(
        tmp_path / "a", blank(TEXT, method), method_name="adalink", settings=method.settings(),
        architecture=TEXT, base_fingerprint="0",
    )  # fmt: skip
    text = (tmp_path / "a" / "adapter.json").read_text()
    assert "image" not in text and "modality" not in text


def test_the_counts_of_pali_x_are_those_of_the_paper():
    """2 modalities × 2 matrices × 4,096 × 64; the same unified; 64 vectors of a prompt."""
    for name, setting, expected in (
        ("adalink_by_modality", "RANK=64", 1_048_576),
        ("adalink", "RANK=128", 1_048_576),
        ("adalink_by_modality", "adalink.AdaLink.image_rank=16", 2 * 4096 * (4 + 16)),
        ("prompt_tuning", "PROMPT_LENGTH=64", 262_144),
    ):
        config, method = gin_files.shipped("pali_x", name, [setting])
        assert counts.stored_parameters(config, method) == expected


@pytest.mark.slow
def test_a_batch_costs_what_its_image_tokens_add():
    """Each adds the projection, and an encoder's and cross-attention's products for it."""
    shapes = [counts.Shape(2, 8, 4), counts.Shape(2, 8, 4, 3), counts.Shape(2, 11, 4)]
    text, images, longer = (
        counts.traced_flops(CONFIG, Method(), shape).forward for shape in shapes
    )
    assert images - longer == 2 * 2 * 3 * WIDTH * D and longer > text
    assert (shapes[0].tokens, shapes[1].tokens) == ("8 + 4", "3 of images + 8 + 4")
    with pytest.raises(UserError, match="reads text alone"):
        counts.traced_flops(TEXT, Method(), shapes[1])
