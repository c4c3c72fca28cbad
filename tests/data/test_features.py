"""Features of pictures: the encoder's values, computed once, never another encoder's or damaged."""

import dataclasses
import logging
import os
import pathlib
import threading

import numpy as np
import pytest

from adalink_jax import progress
from adalink_jax.data.images import Pictures, store
from adalink_jax.errors import UserError

from .seeing import Eye, Shrunk, drawn, save

KEYS = [f"{i}.png" for i in range(10)]


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "pictures", range(10))
    return tmp_path / "pictures"


@pytest.fixture
def see(folder, tmp_path):
    """Returns the features of some pictures, [n, M, Dv], and the encoder that was asked."""

    def values(keys=KEYS, eye=None, **given):
        eye = eye or Eye()
        given = {"cache_dir": tmp_path / "cache", "batch_size": 4} | given
        pictures = Pictures(eye, folder, **given)
        features = pictures.features(pictures.digests(keys))
        numbers = np.arange(len(keys))
        batch = features.batch(numbers, numbers, len(keys))
        assert (batch["encoder_image_mask"] == 1).all()
        return batch["encoder_images"], eye

    return values


def stored(tmp_path) -> list[pathlib.Path]:
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


def expected(numbers) -> np.ndarray:
    return np.stack([Eye().expected(drawn(i)) for i in numbers])


def test_features_are_the_encoder_s_and_computed_once(see, tmp_path):
    first, eye = see()
    np.testing.assert_allclose(first, expected(range(10)), atol=1e-5)
    assert first.dtype == np.float32 and eye.seen == [4, 4, 4]  # Always of one size.
    again, eye = see()
    assert np.array_equal(first, again) and eye.seen == []
    some, eye = see([KEYS[7], KEYS[2], KEYS[7]])
    assert np.array_equal(some, first[[7, 2, 7]]) and eye.seen == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_without_a_store_the_values_are_the_same_to_the_bit(see, tmp_path, dtype):
    kept, _ = see(dtype=dtype)
    fresh, eye = see(dtype=dtype, stored=False)
    assert np.array_equal(kept, fresh) and eye.seen == [4, 4, 4]
    one = np.concatenate([see([key], dtype=dtype, stored=False)[0] for key in KEYS])
    assert np.array_equal(kept, one)
    exact = expected(range(10)).astype(np.float32)
    assert np.array_equal(kept, kept.astype(dtype))
    np.testing.assert_allclose(kept, exact, rtol=2**-11 if dtype == "float16" else 0, atol=1e-5)


def test_a_row_is_found_by_the_picture_and_not_by_its_name(see, folder, tmp_path):
    first, _ = see()
    (folder / "copy.png").write_bytes((folder / "3.png").read_bytes())
    found, eye = see(["copy.png"])
    assert np.array_equal(found, first[3:4]) and eye.seen == []
    (folder / "3.png").write_bytes((folder / "4.png").read_bytes())
    assert np.array_equal(see(["3.png"])[0], first[4:5])
    save(folder.parent / "new", [11])
    (folder / "3.png").write_bytes((folder.parent / "new/11.png").read_bytes())
    found, eye = see(["3.png"])
    np.testing.assert_allclose(found, expected([11]), atol=1e-5)
    assert eye.seen == [4]


@dataclasses.dataclass(frozen=True)
class Another(Shrunk):
    """Another preprocessing, of the same settings."""


OTHERS = {
    "weights": {"eye": Eye(seed=1)},
    "settings of preprocessing": {"eye": Eye(preprocessing=Shrunk(scale=1 / 128))},
    "kind of preprocessing": {"eye": Eye(preprocessing=Another())},
    "dtype": {"dtype": "float16"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_encoder_shares_no_row(see, tmp_path, what):
    first, _ = see()
    before = {path: path.read_bytes() for path in stored(tmp_path)}
    _, eye = see(**OTHERS[what])
    assert eye.seen == [4, 4, 4]
    eye.seen.clear()
    assert len({path.parent for path in stored(tmp_path)}) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert np.array_equal(see()[0], first)


def test_a_flipped_byte_is_found_wherever_it_is(see, tmp_path, caplog):
    first, _ = see()
    (path,) = stored(tmp_path)
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 12).tolist() + [0, 9]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found, eye = see()
        assert np.array_equal(found, first), place
        assert eye.seen == [4, 4, 4] and "are damaged" in caplog.text
        assert [one.read_bytes() for one in stored(tmp_path)] == [content]
    for cut in (0, 7, len(content) - 1):
        path.write_bytes(content[:cut])
        assert np.array_equal(see()[0], first)


def test_what_was_written_before_a_stop_is_not_computed_again(see, tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    class Tired(Eye):
        def __call__(self, pixels):
            if len(self.seen) == 2:
                raise Stopped
            return super().__call__(pixels)

    monkeypatch.setattr(store, "_PICTURES", 4)
    with pytest.raises(Stopped):
        see(eye=Tired())
    assert len(stored(tmp_path)) == 2
    found, eye = see()
    assert eye.seen == [4] and len(stored(tmp_path)) == 3
    np.testing.assert_allclose(found, expected(range(10)), atol=1e-5)
    left = [name for _, _, names in os.walk(tmp_path / "cache") for name in names]
    assert sorted(left) == sorted(path.name for path in stored(tmp_path))  # No lock, no part.


def test_two_that_need_the_same_features_compute_them_once(see, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(store, "_LOOK", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Eye):
        def __call__(self, pixels):
            begun.set()
            assert go_on.wait(60)
            return super().__call__(pixels)

    found = {}
    slow, other = Slow(), Eye()
    threads = [
        threading.Thread(target=lambda eye=eye: found.update({eye: see(eye=eye)[0]}))
        for eye in (slow, other)
    ]
    threads[0].start()
    assert begun.wait(60)
    with caplog.at_level(logging.WARNING):
        threads[1].start()
        while "waiting: image features" not in caplog.text:
            assert threads[1].is_alive()
            threads[1].join(0.01)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert np.array_equal(found[slow], found[other]) and other.seen == []


def test_an_example_without_a_picture_has_none(see, folder, tmp_path):
    pictures = Pictures(Eye(), folder, cache_dir=tmp_path / "cache")
    digests = pictures.digests(["1.png", "", "1.png", "2.png"])
    assert digests.any(axis=1).tolist() == [True, False, True, True]
    batch = pictures.features(digests).batch(np.array([1, 3, 0]), np.array([0, 1, 3]), 5)
    assert batch["encoder_image_mask"].tolist() == [[0] * 4, [1] * 4, [0] * 4, [1] * 4, [0] * 4]
    images = batch["encoder_images"]
    np.testing.assert_allclose(images[[1, 3]], expected([2, 1]), atol=1e-5)
    assert not images[[0, 2, 4]].any()


@dataclasses.dataclass(frozen=True, eq=False)
class Blown(Eye):
    """Its features are too large for float16, or no numbers."""

    factor: float = 1e6

    def __call__(self, pixels):
        return np.asarray(super().__call__(pixels)) * np.float32(self.factor)


class Narrow(Eye):
    """It gives other tokens than it says."""

    def __call__(self, pixels):
        return super().__call__(pixels)[..., :5]


def test_what_cannot_be_encoded_is_one_line(see, folder, tmp_path):
    assert np.isfinite(see(eye=Blown())[0]).all()
    for eye, dtype in ((Blown(), "float16"), (Blown(seed=1, factor=np.nan), "float32")):
        with pytest.raises(UserError, match=r"features of picture '0.png' are not finite in flo"):
            see(eye=eye, dtype=dtype)
    with pytest.raises(UserError, match=r"image encoder gives \[4, 5\] a picture; it says \[4, 6"):
        see(eye=Narrow(seed=2))
    content = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(content[:-40])
    with pytest.raises(UserError, match="picture .*5.png is damaged"):
        see()
    (folder / "6.png").unlink()
    with pytest.raises(UserError, match="there is no picture .*6.png; did you mean"):
        see()


def test_a_picture_that_changes_while_it_is_read_is_refused(folder, tmp_path):
    pictures = Pictures(Eye(), folder, cache_dir=tmp_path)
    digests = pictures.digests(KEYS)
    (folder / "2.png").write_bytes((folder / "3.png").read_bytes())
    with pytest.raises(UserError, match="2.png has changed since the run began"):
        pictures.features(digests)


def test_progress_is_said(see, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(progress, "_medium", lambda: progress._Lines(seconds=0.0))
    see(say=said.append)
    assert said == ["images: 10 of 10 pictures to encode"]
    lines = capsys.readouterr().err
    assert (
        "reading: 10 of 10 pictures" in lines and "encoding: 8 of 10 pictures, 0:00 left" in lines
    )


def test_the_encoder_is_let_go_where_features_are_stored(folder, tmp_path):
    kept = Pictures(Eye(), folder, cache_dir=tmp_path)
    digests = kept.digests(KEYS[:3])
    before = kept.features(digests)
    kept.let_go()
    assert before.batch(np.arange(3), np.arange(3), 3)["encoder_images"].any()
    assert kept.features(digests).shape == (4, 6)
    with pytest.raises(UserError, match="features were not computed"):
        kept.features(kept.digests(KEYS))
    fresh = Pictures(Eye(), folder, stored=False)
    fresh.let_go()
    batch = fresh.features(fresh.digests(KEYS[:3])).batch(np.arange(3), np.arange(3), 3)
    np.testing.assert_allclose(batch["encoder_images"], expected(range(3)), atol=1e-5)
