"""Files as samples: folders of pictures or recordings, with or without folders of classes, and lists of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relprop import audio, data
from relprop.errors import InvalidInput
from relprop.run.samples import Intake, Label, Sample, Samples, each_once, fingerprint


@dataclass(frozen=True, slots=True)
class Found:
    """A file, what it is called, and the folder of its class."""

    id: str
    file: Path
    label: Label


def pictures(paths: Sequence[Path], intake: Intake) -> Samples:
    """Photographs, prepared as the network takes them; files that cannot be read fail when they are."""
    found = found_in(paths, data.SUFFIXES, "photographs")

    def read(number: int) -> Sample:
        file = found[number].file
        return intake.picture(data.read_photograph(data.file_of(file, "picture"), str(file)))

    return _samples("image", paths, found, read)


def recordings(paths: Sequence[Path], intake: Intake) -> Samples:
    """Recordings, at the rate that the model takes."""
    found = found_in(paths, audio.SUFFIXES, "recordings")

    def read(number: int) -> Sample:
        file = found[number].file
        return intake.recording(audio.open_recording(file, intake.rate))

    lengths = [audio.seconds_of(one.file) for one in found]
    return _samples("audio", paths, found, read, max(range(len(found)), key=lengths.__getitem__))


def _samples(
    kind: str, paths: Sequence[Path], found: list[Found], read: object, longest: int | None = None
) -> Samples:
    sizes = [one.file.stat().st_size if one.file.is_file() else -1 for one in found]
    return Samples(
        kind=kind,
        name=", ".join(map(str, paths[:3])) + (" …" if len(paths) > 3 else ""),
        ids=each_once([one.id for one in found]),
        fingerprint=fingerprint(
            part for one, size in zip(found, sizes, strict=True) for part in (one.id, size)
        ),
        read=read,  # type: ignore[arg-type]
        source=lambda number: str(found[number].file.absolute()),
        labels=[one.label for one in found] if any(one.label for one in found) else [],
        longest=longest,
    )


def found_in(paths: Sequence[Path], endings: Sequence[str], what: str) -> list[Found]:
    """The files that paths name: files as they are, folders by what is in them at any depth, in the order of names.

    The first folder below a given one is the class. Raises `InvalidInput` for a path that is not there and a folder
    without such files.
    """
    found: list[Found] = []
    for path in paths:
        if path.is_dir():
            inside = list(_walk(path, endings))
            if not inside:
                raise InvalidInput(
                    f"data: {path} is a folder without {what}\n  do: give one with files ending in {', '.join(endings)}"
                )
            found += inside
        elif path.exists() or len(paths) > 1:
            found.append(Found(str(path), path, None))
        else:
            raise InvalidInput(f"data: {path}: no such file or folder\n  do: give a folder of {what}")
    return found


def _walk(folder: Path, endings: Sequence[str]) -> list[Found]:
    found: list[Found] = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(place) / name
            if file.suffix.lower() in endings and not name.startswith("."):
                inside = file.relative_to(folder)
                found.append(
                    Found(inside.as_posix(), file, inside.parts[0] if len(inside.parts) > 1 else None)
                )
    return sorted(found, key=lambda one: one.id)


def _refused(error: OSError) -> None:
    raise InvalidInput(
        f"data: the folder {error.filename} cannot be read ({error.strerror})\n  do: ask for the right to, or give another"
    ) from error


def list_of(file: Path) -> list[Path]:
    """The files that a text file lists, one a line, from its own folder. Raises `InvalidInput` for an empty list."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"data: {file} cannot be read as text ({type(error).__name__})\n  do: save it in UTF-8, a file a line"
        ) from error
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not named:
        raise InvalidInput(f"data: {file} lists no files\n  do: write one a line")
    return [Path(name) if Path(name).is_absolute() else file.parent / name for name in named]
