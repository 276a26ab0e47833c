"""Finished pictures: as bytes, as HTML, as files."""

from __future__ import annotations

import base64
import errno
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF"}
"""File name endings that `save` knows, and the format each one means."""


@contextmanager
def show_extra() -> Iterator[None]:
    """Turn a failed import of matplotlib or pillow inside the block into a `MissingExtra` that says what to
    do."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(
            f"pictures need matplotlib and pillow, and {error.name or 'one of them'} cannot be imported\n"
            "  do: pip install 'relprop[show]'"
        ) from error


def check_packages() -> None:
    """Raise `MissingExtra` where no picture can be drawn: what is slow to compute asks before, not when it draws."""
    with show_extra():
        import matplotlib.backends  # noqa: F401
        import PIL.Image  # noqa: F401


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def html(picture: Image.Image, caption: str = "") -> str:
    """A self-contained `<figure>`: the picture as a data URI and, if given, a caption.

    `caption` is plain text, whose lines and columns are kept, and is escaped; it is the image's alternative text too. Nothing is loaded from
    elsewhere, so that the result works in notebooks (`_repr_html_`) and in reports.
    """
    data = base64.b64encode(png_bytes(picture)).decode("ascii")
    text = escape(caption, quote=True)
    below = (
        '<figcaption style="font:12px/1.5 ui-monospace,Menlo,Consolas,monospace;color:#555;margin-top:4px;'
        f'white-space:pre-wrap">{text}</figcaption>'
        if caption
        else ""
    )
    return (
        '<figure style="margin:0.5em 0">'
        f'<img src="data:image/png;base64,{data}" alt="{text or "relevance"}" width="{picture.width}" '
        f'style="max-width:100%;height:auto">{below}</figure>'
    )


def save(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write the picture to `path` and return the path written.

    The ending chooses the format: .png, .jpg, .jpeg or .pdf; without an ending, .png is appended. The file
    appears whole or not at all: it is written beside its place and then moved there, so a failure leaves an
    older file as it was.
    Raises `InvalidInput` for another ending, a missing folder, or a path that is a folder.
    """
    target, kind = check_place(path)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    with whole(target) as file:
        picture.convert("RGB").save(file, format=kind, **options)
    return target


def check_place(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Where `save` would write to and in which format. Raises `InvalidInput` where it could not."""
    target = Path(path)
    if not target.suffix:
        target = target.with_name(f"{target.name}.png") if target.name else target
    kind = FORMATS.get(target.suffix.lower())
    if target.is_dir() or Path(path).is_dir():
        raise InvalidInput(f"cannot save a picture as {str(path)!r}: it is a folder\n  do: add a file name")
    if kind is None:
        raise InvalidInput(
            f"cannot save a picture as {str(path)!r}: unknown ending {target.suffix!r}\n"
            f"  do: use one of {', '.join(FORMATS)}"
        )
    if not target.parent.is_dir():
        raise InvalidInput(
            f"cannot save a picture as {str(path)!r}: there is no folder {str(target.parent)!r}\n"
            "  do: create the folder first, or choose another path"
        )
    return target, kind


def save_page(body: str, path: str | os.PathLike[str]) -> Path:
    """Write HTML as a page of its own to `path` (.html); whole or not at all. Returns the path."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InvalidInput(
            f"cannot save a page as {str(path)!r}: there is no folder {str(target.parent)!r}\n"
            "  do: create the folder first, or choose another path"
        )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        'initial-scale=1"><title>relprop</title></head><body style="margin:0;background:#fff"><main style="max-width:56em;'
        f'margin:0 auto;padding:1em">{body}</main></body></html>\n'
    )
    with whole(target) as file:
        file.write(page.encode("utf-8"))
    return target


@contextmanager
def whole(target: Path) -> Iterator[IO[bytes]]:
    """A file that appears at its place when it is complete; a failure leaves an older one as it was.

    Raises `InvalidInput` where the disk refuses.
    """
    draft = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        if error.errno is None:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise InvalidInput(
            f"{target}: cannot be written ({error.strerror})\n  do: {'make room' if full else 'give another place'}"
        ) from error
    finally:
        with suppress(OSError):  # the reason is told already
            draft.unlink()


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one under the other, left-aligned on white; one picture is returned as it is."""
    with show_extra():
        from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet
