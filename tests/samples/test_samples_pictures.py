"""Folders of pictures: layouts, preprocessing, classes, laziness, and broken files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from packlight.errors import UnusableSamples, WrongUsage
from packlight.samples import (
    PREPROCESS_CANDIDATES,
    batches_of,
    class_names_of,
    open_samples,
    pictures,
    split_samples,
)
from packlight.tensors import TensorSpec

NCHW = TensorSpec("image", "float32", ("batch", 3, 8, 8))
NHWC = TensorSpec("image", "float32", (1, 8, 8, 3))
GREY = TensorSpec("image", "float32", ("batch", 1, 8, 8))


def save(path, array=None, seed=0):
    if array is None:
        array = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def test_a_picture_of_the_models_size_is_not_touched(tmp_path):
    array = save(tmp_path / "a.png")
    read = open_samples(tmp_path, [NCHW], preprocess="0..255").read([0])["image"]
    assert read.dtype == np.float32
    assert np.array_equal(read[0], array.transpose(2, 0, 1))
    read = open_samples(tmp_path / "a.png", [NHWC], preprocess="0..255").read([0])["image"]
    assert np.array_equal(read[0], array)
    grey = open_samples(tmp_path, [GREY], preprocess="0..255").read([0])["image"]
    assert np.array_equal(grey[0, 0], np.asarray(Image.fromarray(array).convert("L")))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("0..1", 0, 1),
        ("-1..1", -1, 1),
        ("0..255", 0, 255),
        ("mean=0.5,std=0.25", -2, 2),
        ("mean=0.5,0.5,0.5,std=0.25,0.25,0.25", -2, 2),
        ("imagenet", -0.485 / 0.229, (1 - 0.485) / 0.229),
    ],
)
def test_preprocessing_maps_black_and_white(tmp_path, name, low, high):
    array = np.zeros((8, 8, 3), np.uint8)
    array[4:] = 255
    save(tmp_path / "a.png", array)
    samples = open_samples(tmp_path, [NCHW], preprocess=name)
    channel = samples.read([0])["image"][0, 0]
    assert np.allclose([channel[0, 0], channel[7, 0]], [low, high], atol=1e-5)
    assert name in samples.source
    assert samples.notes == ()


def test_the_assumed_preprocessing_is_noted(tmp_path):
    save(tmp_path / "a.png")
    assert "'imagenet' was assumed" in open_samples(tmp_path, [NCHW]).notes[0]
    assert "'0..1' was assumed" in open_samples(tmp_path, [GREY]).notes[0]
    assert PREPROCESS_CANDIDATES == ("imagenet", "0..1", "-1..1", "0..255")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "'vgg' is unknown; use one of imagenet, 0..1, -1..1, 0..255 or mean="),
        ("mean=a,std=1", "mean needs 3 numbers"),
        ("mean=0.5,0.5,std=1", "mean needs 3 numbers"),
        ("mean=0.5,std=0", "above 0"),
        ("mean=127,std=128", "divide them by 255"),
        ("mean=0.5", "unknown"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(tmp_path, name, message):
    save(tmp_path / "a.png")
    with pytest.raises(WrongUsage, match=message):
        open_samples(tmp_path, [NCHW], preprocess=name)


def test_the_shorter_side_is_scaled_and_the_longer_cropped(tmp_path):
    array = np.zeros((16, 64, 3), np.uint8)
    array[:, 24:40] = 200  # the square in the middle
    save(tmp_path / "a.png", array)
    read = open_samples(tmp_path, [NCHW], preprocess="0..255").read([0])["image"]
    assert (read[0, :, :, 1:-1] == 200).all()


def test_scaling_down_is_antialiased(tmp_path):
    save(tmp_path / "a.png", np.tile(np.array([[[0]], [[255]]], np.uint8), (32, 64, 3)))
    read = open_samples(tmp_path, [NCHW], preprocess="0..255").read([0])["image"]
    assert np.abs(read - 127.5).max() < 6  # stripes of one pixel: picking pixels gives 0 or 255


def test_open_sizes_become_224_with_a_note(tmp_path):
    save(tmp_path / "a.png")
    spec = TensorSpec("image", "float32", ("n", 3, "height", "width"))
    samples = open_samples(tmp_path, [spec])
    assert samples.read([0])["image"].shape == (1, 3, 224, 224)
    assert any("224 x 224" in note for note in samples.notes)


def test_8_bit_inputs_get_bytes(tmp_path):
    array = save(tmp_path / "a.png")
    spec = TensorSpec("image", "uint8", (1, 8, 8, 3))
    read = open_samples(tmp_path, [spec]).read([0])["image"]
    assert read.dtype == np.uint8 and np.array_equal(read[0], array)
    with pytest.raises(WrongUsage, match=r"use --preprocess 0..255"):
        open_samples(tmp_path, [spec], preprocess="imagenet")


def test_other_modes_and_turned_photos_are_read(tmp_path):
    deep = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 10)).save(tmp_path / "b.png")
    Image.new("P", (8, 8)).save(tmp_path / "c.gif")
    turned = Image.new("RGB", (8, 8))
    turned.paste((255, 255, 255), (0, 0, 8, 4))
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "d.png", exif=exif)
    read = open_samples(tmp_path, [NCHW], preprocess="0..255").read(range(4))["image"]
    assert np.abs(read[0, 0] - deep / 257).max() <= 0.5
    assert (read[1, 0] == 255).all()
    assert (read[3, :, :4] == 0).all() and (read[3, :, 4:] == 255).all()


def test_class_folders_give_labels_and_names(tmp_path):
    for number, name in enumerate(["dog", "cat", "cat", "ant"]):
        save(tmp_path / name / f"{number}.png", seed=number)
    (tmp_path / ".hidden").mkdir()
    samples = open_samples(tmp_path, [NCHW])
    assert class_names_of(samples) == ("ant", "cat", "dog")
    assert samples.labels.tolist() == [0, 1, 1, 2]
    assert "3 classes" in samples.source


def test_numbered_class_folders_are_sorted_by_number_and_empty_ones_count(tmp_path):
    for number in (0, 1, 2, 10):
        save(tmp_path / str(number) / "a.png", seed=number)
    samples = open_samples(tmp_path, [NCHW])
    assert class_names_of(samples) == ("0", "1", "2", "10")
    assert any("numbered with gaps" in note for note in samples.notes)
    (tmp_path / "3").mkdir()
    samples = open_samples(tmp_path, [NCHW])
    assert samples.labels.tolist() == [0, 1, 2, 4]
    assert any("'3' is empty" in note for note in samples.notes)


def test_only_the_pictures_that_are_read_are_decoded(tmp_path, monkeypatch):
    for number in range(20):
        save(tmp_path / f"{number:02}.png", seed=number)
    decoded = []
    load = pictures.load_picture
    monkeypatch.setattr(
        pictures,
        "load_picture",
        lambda path, **size: decoded.append(path.name) or load(path, **size),
    )
    samples = open_samples(tmp_path, [NCHW])
    split_samples(samples)
    assert decoded == []
    list(batches_of(samples, [3, 7], [NCHW]))
    assert set(decoded) == {"03.png", "07.png"}


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_picture_is_named(tmp_path, content):
    save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2] if content is None else content)
    samples = open_samples(tmp_path, [NCHW])
    samples.read([0])
    with pytest.raises(UnusableSamples, match=r"b\.png cannot be decoded"):
        samples.read([1])


def test_a_picture_with_too_many_pixels_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(UnusableSamples, match=r"a\.png has too many pixels"):
        open_samples(tmp_path, [NCHW]).read([0])


def test_formats_that_start_programs_are_not_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(UnusableSamples, match=r"a\.png cannot be decoded"):
        open_samples(tmp_path, [NCHW]).read([0])


def test_folders_without_samples_and_of_two_kinds_are_refused(tmp_path):
    with pytest.raises(UnusableSamples, match=r"holds no pictures .* but nothing"):
        open_samples(tmp_path, [NCHW])
    (tmp_path / "x.npz").touch()
    with pytest.raises(UnusableSamples, match=r"but x\.npz; give a folder"):
        open_samples(tmp_path, [NCHW])
    save(tmp_path / "a.png")
    (tmp_path / "b.wav").touch()
    with pytest.raises(UnusableSamples, match="1 pictures and 1 sounds"):
        open_samples(tmp_path, [NCHW])


def test_a_model_without_pictures_says_what_it_expects(tmp_path):
    save(tmp_path / "a.png")
    spec = TensorSpec("x", "float32", ("batch", 640))
    with pytest.raises(UnusableSamples, match=r"no input of the model takes one.*\[batch, 640\]"):
        open_samples(tmp_path, [spec])
    with pytest.raises(UnusableSamples, match=r"nothing for the input scale: float32\[2\]"):
        open_samples(tmp_path, [NCHW, TensorSpec("scale", "float32", (2,))])


def test_copies_of_a_picture_stay_in_one_part(tmp_path):
    for number in range(30):
        save(tmp_path / f"{number:02}.png", seed=number % 10)
    split = split_samples(open_samples(tmp_path, [NCHW]))
    parts = [
        {index % 10 for index in part} for part in (split.calibration, split.search, split.proof)
    ]
    assert all(parts)
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_real_faces_are_read(real):
    spec = TensorSpec("input", "float32", (1, 3, 240, 320))
    samples = open_samples(real / "faces", [spec], preprocess="-1..1")
    block = samples.read([0, 1])["input"]
    assert block.shape == (2, 3, 240, 320)
    assert -1 <= block.min() < -0.5 and 0.5 < block.max() <= 1


@pytest.mark.parametrize("size", [(1023, 769), (333, 1000), (417, 415), (641, 427), (99, 1001)])
def test_sizes_whose_crop_rounds_past_an_edge_are_read(tmp_path, size):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "one.png")
    for side in (416, 257, 13, 7):
        spec = TensorSpec("images", "float32", (1, 3, side, side))
        batch = open_samples(tmp_path, [spec], preprocess="0..255").read([0])
        assert batch["images"].shape == (1, 3, side, side)
        assert np.allclose(batch["images"][0, :, 0, 0], (10, 20, 30))
