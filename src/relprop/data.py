"""Photographs: found, opened and turned into what an image network takes.

Pillow is imported when a photograph is opened: `pip install 'relprop[show]'`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from relprop.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

DEMO = Path(__file__).parent / "demo"
"""The folder of the bundled photograph and class names; its README states their sources and licences."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""File name endings that make a file in a folder a photograph; a file named by itself may have any ending."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NARROW = 64
"""A photograph whose sides differ by a larger factor is refused: scaled by its shorter side, it is huge."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a photograph to a network's input: scale, centre crop, normalise.

    Attributes:
        size: height and width of the input in pixels.
        resize: what the photograph's shorter side is scaled to before the crop, at least `size`.
        mean: subtracted from each channel, whose values are in 0…1; one value means grey pictures.
        std: each channel is then divided by it.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming", as Pillow does them.
        squash: scale both sides to `resize`, whatever the photograph's proportions.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize <= 16384:
            raise InvalidInput(
                f"size: {self.size} pixels, cropped from {self.resize}\n"
                "  do: give a whole number from 1 to 16384"
            )
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise InvalidInput(
                f"mean and std: {len(self.mean)} and {len(self.std)} values\n"
                "  do: give three of each (red, green, blue), or one of each for grey pictures"
            )
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(self.std)) or min(self.std) <= 0:
            raise InvalidInput(
                f"mean and std: {self.mean} and {self.std}\n  do: give finite numbers, and positive deviations"
            )

    def cropped(self, path: str | Path) -> Image:
        """The photograph in a file as the network sees it. Raises `InvalidInput` that names the file."""
        return self.crop(open_photograph(path), str(path))

    def crop(self, photograph: Image, name: str = "") -> Image:
        """The photograph as the network sees it: `size` × `size` pixels, RGB (grey for one channel).

        Raises `InvalidInput` where it is too narrow; `name` says which one that is.
        """
        if photograph.width > NARROW * photograph.height or photograph.height > NARROW * photograph.width:
            raise InvalidInput(
                f"{name}{': ' if name else ''}a photograph of {photograph.width} × {photograph.height} pixels is too narrow\n"
                f"  do: give one whose sides differ by a factor of at most {NARROW}"
            )
        scaled, (left, top) = self._scaled(photograph.width, photograph.height)
        picture = (
            photograph.resize(scaled, _filter(self.interpolation))
            if scaled != photograph.size
            else photograph
        )
        picture = picture.crop((left, top, left + self.size, top + self.size))
        return picture.convert("L") if len(self.mean) == 1 else picture

    def tensor(self, crop: Image) -> Tensor:
        """The network's input for what `crop` returned: float32, (C, size, size)."""
        pixels = np.asarray(crop, dtype=np.uint8).copy()
        values = torch.from_numpy(pixels).reshape(self.size, self.size, len(self.mean)).permute(2, 0, 1)
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return values.contiguous().to(torch.float32).div(255).sub(mean).div(std)

    def placed(
        self, box: tuple[float, float, float, float], width: int, height: int
    ) -> tuple[float, float, float, float]:
        """Where a box (left, top, right, bottom) of a photograph of `width` × `height` pixels lies in its crop.

        It may reach over the crop's edges, or lie beyond them.
        """
        scaled, (left, top) = self._scaled(width, height)
        across, down = scaled[0] / width, scaled[1] / height
        return box[0] * across - left, box[1] * down - top, box[2] * across - left, box[3] * down - top

    def _scaled(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of the whole photograph before the crop, and the crop's left and top."""
        if self.squash:
            wide = high = self.resize
        elif width <= height:
            wide, high = self.resize, int(self.resize * height / width)
        else:
            wide, high = int(self.resize * width / height), self.resize
        return (wide, high), (round((wide - self.size) / 2.0), round((high - self.size) / 2.0))

    def __str__(self) -> str:
        way = "both sides" if self.squash else "shorter side"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.size} × {self.size} pixels from the centre, {way} scaled to {self.resize}"
            f" ({self.interpolation}), mean {mean}, std {std}"
        )


def file_of(path: str | Path, what: str) -> Path:
    """The file at a path. Raises `InvalidInput` where there is none, a folder (which is no `what`), or an empty one."""
    file = Path(path)
    if file.is_dir():
        raise InvalidInput(f"{file}: a folder, not a {what}\n  do: give one of the files in it")
    if not file.exists():
        raise InvalidInput(f"{file}: no such file\n  do: look at the path")
    if file.is_file() and file.stat().st_size == 0:
        raise InvalidInput(f"{file}: an empty file, of 0 bytes\n  do: fetch it again, or leave it out")
    return file


def open_photograph(path: str | Path) -> Image:
    """The photograph in a file: RGB, upright by its EXIF orientation, transparency over white.

    Raises `InvalidInput` where there is no such file or it is no readable picture.
    """
    file = file_of(path, "photograph")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_photograph(file, str(file))


def read_photograph(file: Path | BinaryIO, name: str) -> Image:
    """As `open_photograph`, of a file or of what was read of one; `name` is for errors. Pillow's warnings come through."""
    pil = pillow()
    try:
        with pil.Image.open(file) as opened:
            deep = opened.format == "PPM"
            upright: Image = _rgb(pil, pil.ImageOps.exif_transpose(opened), deep)
            return upright
    except pil.UnidentifiedImageError as error:
        raise InvalidInput(
            f"{name}: not a picture in a format that Pillow reads\n  do: convert it, such as to PNG, or leave it out"
        ) from error
    except pil.Image.DecompressionBombError as error:
        raise InvalidInput(
            f"{name}: a picture of more pixels than Pillow opens ({str(error).partition(',')[0]})\n"
            "  do: scale it down first"
        ) from error
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from error
    except PermissionError as error:
        raise InvalidInput(
            f"{name}: it may not be read ({error.strerror})\n  do: ask for the right to"
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, …
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise InvalidInput(
            f"{name}: a damaged or unreadable picture ({cause})\n  do: fetch or save it again, or leave it out"
        ) from error


def _rgb(pil: Any, picture: Any, deep: bool) -> Any:
    """RGB; `deep`: whole numbers of 32 bits hold 16 (Pillow scales those of a .pgm to 65535)."""
    if picture.mode in ("I", "F") and not deep:
        raise InvalidInput(
            f"a picture of 32-bit {'whole' if picture.mode == 'I' else 'real'} numbers, whose black and white nothing tells\n"
            "  do: save it with 8 or 16 bits, or give arrays to relprop.explain"
        )
    if picture.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them to 8
        picture = pil.Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = pil.Image.new("RGBA", picture.size, "white")
        picture = pil.Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def photographs_in(paths: Sequence[str | Path]) -> list[Path]:
    """The photographs that paths name: files as they are, a folder by the pictures in it, sorted by name.

    Raises `InvalidInput` for a folder without pictures. Files are not opened.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not inside:
            below = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
            raise InvalidInput(
                f"{path}: a folder without photographs\n"
                + (
                    f"  do: give the folders in it, such as {below[0]}"
                    if below
                    else f"  do: give one with files ending in {', '.join(SUFFIXES)}"
                )
            )
        found += inside
    return found


def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1000 ImageNet classes, in the order of the class index."""
    return tuple((DEMO / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())


def pillow() -> Any:
    """The package PIL with `Image` and `ImageOps`. Raises `MissingExtra` where it is not installed."""
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise MissingExtra("photographs need pillow\n  do: pip install 'relprop[show]'") from error
    return PIL


def _filter(interpolation: str) -> Any:
    try:
        return pillow().Image.Resampling[interpolation.upper()]
    except KeyError as error:
        raise InvalidInput(
            f"interpolation: {interpolation!r} is none of Pillow's\n  do: give bilinear, bicubic, nearest or another of them"
        ) from error
