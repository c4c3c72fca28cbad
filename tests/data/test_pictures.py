"""Reading one picture: the right pixels of every kind, and one line for what is no picture."""

import io

import numpy as np
import pytest
from PIL import Image

from adalink_jax.data.images import read
from adalink_jax.errors import UserError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GRAY = PIXELS[..., 0]


def repeated(gray: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, axis=-1)


def indexed() -> tuple[Image.Image, np.ndarray]:
    """A picture with a palette of 16 colors, and its pixels."""
    palette, index = RANDOM.integers(0, 256, (16, 3)).astype(np.uint8), GRAY % 16
    image = Image.fromarray(index, mode="L")
    image.putpalette(palette.tobytes())
    return image, palette[index]


def see_through() -> tuple[Image.Image, np.ndarray]:
    """A picture of which the left half is transparent, and its pixels on white."""
    alpha = np.full(GRAY.shape, 255, np.uint8)
    alpha[:, :3] = 0
    on_white = np.where(alpha[..., None] == 0, 255, PIXELS)
    return Image.fromarray(np.dstack([PIXELS, alpha])), on_white


def cmyk() -> tuple[Image.Image, np.ndarray]:
    """Four inks, and what they leave of white light."""
    inks = RANDOM.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    left = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    return Image.fromarray(inks, mode="CMYK"), left


DEEP = RANDOM.integers(0, 65536, (5, 7)).astype(np.uint16)
KINDS = {
    "rgb.png": (Image.fromarray(PIXELS), PIXELS, {}),
    "rgb.bmp": (Image.fromarray(PIXELS), PIXELS, {}),
    "rgb.webp": (Image.fromarray(PIXELS), PIXELS, {"lossless": True}),
    "gray.png": (Image.fromarray(GRAY), repeated(GRAY), {}),
    "bits.png": (Image.fromarray(GRAY > 99), repeated((GRAY > 99) * 255), {}),
    "palette.png": (*indexed(), {}),
    "palette.gif": (*indexed(), {}),
    "alpha.png": (*see_through(), {}),
    "clear.png": (Image.fromarray(PIXELS), np.full_like(PIXELS, 255), {"transparency": None}),
    "inks.tif": (*cmyk(), {}),
    "deep.png": (Image.fromarray(DEEP), repeated(np.round(DEEP / 257)), {}),
    "deep.tif": (Image.fromarray(DEEP), repeated(np.round(DEEP / 257)), {}),
    "deep.ppm": (Image.fromarray(DEEP), repeated(np.round(DEEP / 257)), {}),
    "one.png": (Image.fromarray(PIXELS[:1, :1]), PIXELS[:1, :1], {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_has_the_right_pixels(tmp_path, name):
    image, expected, options = KINDS[name]
    if name == "clear.png":  # One color is transparent, here that of all pixels.
        image = Image.fromarray(np.broadcast_to(PIXELS[:1, :1], PIXELS.shape).copy())
        options = {"transparency": tuple(PIXELS[0, 0].tolist())}
    image.save(tmp_path / name, **options)
    found = read(name, tmp_path)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    # The inks' product is rounded by Pillow in its own way.
    assert np.abs(found.astype(float) - expected).max() <= (1 if name == "inks.tif" else 0)


def test_of_a_picture_that_moves_the_first_frame_is_read(tmp_path):
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(read(name, tmp_path), np.asarray(frames[0])), name


def test_a_picture_of_a_turned_camera_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn it a quarter to the right.
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read("turned.png", tmp_path), np.rot90(PIXELS, -1))


def test_photographs_are_those_of_pillow(shared_data):
    folder = shared_data / "captions/flickr8k_1000"
    photographs = sorted(folder.rglob("*.jpg"))[:8]
    for path in photographs:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(read(path.relative_to(folder).as_posix(), folder), expected)


def test_a_source_draws_pictures(monkeypatch):
    import tasks

    monkeypatch.setitem(tasks.PICTURES, "squares", lambda index: np.full((2, 3, 3), index, "u1"))
    assert np.array_equal(read("squares:7"), np.full((2, 3, 3), 7))
    monkeypatch.setitem(tasks.PICTURES, "bad", lambda index: np.zeros((2, 3)))
    with pytest.raises(UserError, match="picture bad:1 is float64 of shape .2, 3.; expected uint8"):
        read("bad:1")


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    large = RANDOM.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    Image.fromarray(large).save(buffer, kind, **options)
    return buffer.getvalue()


BROKEN = {
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"<html>404</html>", "damaged, or no picture (JPEG, PNG"),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture (JPEG"),
    **{
        f"cut{i}.{kind}": (content[: int(len(content) * share)], "is damaged")
        for kind, content in (("jpeg", encoded("JPEG")), ("png", encoded("PNG")))
        for i, share in enumerate((0.001, 0.01, 0.1, 0.5, 0.95))
    },
    "cut.webp": (encoded("WEBP")[:200], "is damaged"),
    "cut.gif": (encoded("GIF")[:900], "is damaged"),
    "flipped.png": (encoded("PNG").replace(b"IDAT", b"IDAX"), "is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_is_one_line_with_its_path(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(name, tmp_path)
    line = str(caught.value)
    assert message in line and str(tmp_path / name) in line and "\n" not in line


def test_what_cannot_be_found_is_one_line(tmp_path):
    (tmp_path / "below").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "below/cat_01.png")
    for key, message in {
        "below/cat_02.png": f"there is no picture {tmp_path}/below/cat_02.png; did you mean 'cat_",
        "above/cat_01.png": f"there is no picture {tmp_path}/above/cat_01.png",
        "below": f"picture {tmp_path}/below cannot be read: Is a directory",
        "squares:1": f"there is no picture {tmp_path}/squares:1",
        "../secret.png": "picture '../secret.png' is not a path below Images.folder",
        "/etc/passwd": "picture '/etc/passwd' is not a path below Images.folder",
        "a\0b": "is not a path below Images.folder",
    }.items():
        with pytest.raises(UserError) as caught:
            read(key, tmp_path)
        assert message in str(caught.value)
    with pytest.raises(UserError, match="Images.folder is .*nowhere, where there is no folder"):
        read("cat.png", tmp_path / "nowhere")
    with pytest.raises(
        UserError, match="'cat.png' is a file, but neither Images.folder nor IMAGE_DIR is set"
    ):
        read("cat.png")


@pytest.mark.parametrize("limit", [34, 17])  # Pillow itself refuses twice its limit.
def test_a_picture_too_large_for_memory_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch, limit
):
    Image.fromarray(PIXELS).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"large.png .*(7 × 5 pixels; at most 34|35 pixels)"):
        read("large.png", tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    assert read("large.png", tmp_path).shape == (5, 7, 3)


def test_pixels_of_no_known_range_are_refused(tmp_path):
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(GRAY.astype(np.int32)).save(tmp_path / "long.tif")
    for name in ("float.tif", "long.tif"):
        with pytest.raises(UserError, match=f"{name} has 32 bits a pixel"):
            read(name, tmp_path)
