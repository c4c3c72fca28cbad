"""Preprocessing: bit for bit what transformers' processors of Pillow do, and closed formulas."""

import dataclasses

import numpy as np
import pytest

from adalink_jax.checkpoints.formats.preprocessors import read_preprocessing
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.vision.preprocessing import Preprocessing

SIDES = {"height": 30, "width": 30}
CUT = {"size": {"shortest_edge": 36}, "crop_size": SIDES, "do_center_crop": True}
# Name of the processor, its settings, the family of a folder that has it.
PROCESSORS = [
    ("ViT", {"size": SIDES}, "vit"),
    ("Siglip", {"size": SIDES, "rescale_factor": 0.004}, "siglip"),
    ("CLIP", CUT, "clip"),
    ("Bit", {**CUT, "resample": 2, "image_mean": [0.485, 0.456, 0.406]}, "dinov2"),
    ("Blip", {"size": SIDES, "do_normalize": False}, "blip-2"),
]


def made_pictures() -> list[np.ndarray]:
    """Smooth ones, edges and noise: high and wide, larger and smaller than the result."""
    generator = np.random.default_rng(0)
    found = []
    for height, width in ((75, 41), (40, 90), (17, 23), (30, 30), (101, 101)):
        rows, columns = np.mgrid[:height, :width]
        smooth = np.stack([rows * 255 // height, columns * 255 // width, (rows * columns) % 256])
        noise = generator.integers(0, 256, (3, height, width))
        picture = np.where((rows + columns) % 20 < 10, smooth, noise)
        found.append(picture.transpose(1, 2, 0).astype(np.uint8))
    return found


def compare(tmp_path, name, settings, family, pictures):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    processor = getattr(transformers, f"{name}ImageProcessorPil", None)
    if processor is None:
        pytest.skip("transformers before version 5 has no processors of Pillow alone")
    processor = processor(**settings)
    processor.save_pretrained(tmp_path)
    ours = read_preprocessing(Folder.at(tmp_path), family)
    for picture in pictures:
        theirs = processor(picture, return_tensors="np", input_data_format="channels_last")
        expected = theirs["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(ours.prepare(picture), expected)


@pytest.mark.reference
@pytest.mark.parametrize(("name", "settings", "family"), PROCESSORS)
def test_pixels_are_those_of_transformers(tmp_path, name, settings, family):
    compare(tmp_path, name, settings, family, made_pictures())


@pytest.mark.reference
def test_pixels_of_photographs_are_those_of_transformers(tmp_path, shared_data):
    image = pytest.importorskip("PIL.Image")
    paths = sorted((shared_data / "captions/flickr8k_1000").rglob("*.jpg"))[::40]
    if not paths:
        pytest.skip("no photographs beside the real data")
    photographs = [np.asarray(image.open(path).convert("RGB")) for path in paths]
    for name, settings, family in PROCESSORS:
        sized = {"size": {"height": 224, "width": 224}}
        if "crop_size" in settings:
            sized = {"size": {"shortest_edge": 256}, "crop_size": sized["size"]}
        compare(tmp_path, name, {**settings, **sized}, family, photographs)


def test_a_picture_of_one_color_keeps_it():
    made = Preprocessing(
        height=5, width=7, resample="lanczos", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)
    )
    picture = np.broadcast_to(np.array([255, 51, 0], np.uint8), (20, 9, 3))
    expected = [(1 - 0.1) / 0.5, 0.2 - 0.2, (0 - 0.3) / 2]
    found = made.prepare(picture)
    assert found.dtype == np.float32 and found.shape == (5, 7, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (5, 7, 3)), atol=1e-7)


def test_the_middle_is_cut_out():
    made = Preprocessing(
        height=2, width=2, shortest_edge=4, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    picture = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    np.testing.assert_array_equal(made.prepare(picture), picture[1:3, 3:5])


def test_what_is_no_picture_is_refused():
    made = Preprocessing(height=2, width=2)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(UserError, match="expected uint8"):
            made.prepare(wrong)
    for settings in ({"height": 0}, {"resample": "cubic"}, {"mean": (0.5,)}, {"shortest_edge": 1}):
        with pytest.raises(UserError, match="Preprocessing"):
            Preprocessing(**{"height": 2, "width": 2, **settings})


def test_a_line_of_pixels_is_not_resized_to_more_than_memory():
    """Its shorter side becomes 224, so the other would be 224 times as long."""
    line = np.zeros((1, 1_000_000, 3), np.uint8)
    cut = Preprocessing(height=224, width=224, shortest_edge=224)
    for picture, sides in ((line, "1,000,000 x 1"), (line.transpose(1, 0, 2), "1 x 1,000,000")):
        with pytest.raises(UserError, match=f"{sides} pixels: with 224 .* have 224,000,000 on"):
            cut.prepare(picture)
    squeezed = dataclasses.replace(cut, shortest_edge=None)
    assert squeezed.prepare(line).shape == (224, 224, 3)
