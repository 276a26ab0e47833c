"""WebDataset tars as samples: files of one name in front of the first dot are one sample."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relprop import audio, data
from relprop.errors import InvalidInput
from relprop.run.samples import Intake, Label, Sample, Samples, each_once, fingerprint


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample in a tar: of each of its endings where the bytes lie, (offset, size)."""

    tar: Path
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def bytes(self, ending: str) -> bytes:
        """The content of one of its files."""
        offset, size = self.files[ending]
        with self.tar.open("rb") as held:
            held.seek(offset)
            return held.read(size)


def tars(paths: Sequence[Path], intake: Intake) -> Samples:
    """The pictures, recordings or texts in tars, with labels from `.cls` (a number or a name) or `.json` ("label").

    The tars are indexed first, so that samples are read in place. Raises `InvalidInput` for a tar that is damaged or
    compressed, and where there are no such samples.
    """
    endings = {"text": (".txt", ".text"), "sound": audio.SUFFIXES}.get(intake.reads, data.SUFFIXES)
    found = [entry for path in paths for entry in _entries(path)]
    kept = [(entry, next((e for e in entry.files if e in endings), "")) for entry in found]
    kept = [(entry, ending) for entry, ending in kept if ending]
    if not kept:
        raise InvalidInput(
            f"data: {', '.join(map(str, paths[:3]))} without samples ending in {', '.join(endings)}\n"
            "  do: give tars of WebDataset's layout, such as 000.jpg and 000.cls"
        )
    texts = (
        [entry.bytes(ending).decode("utf-8", "replace") for entry, ending in kept]
        if intake.reads == "text"
        else []
    )

    def read(number: int) -> Sample:
        entry, ending = kept[number]
        name = f"{entry.tar.name}/{entry.key}{ending}"
        if entry.files[ending][1] == 0:
            raise InvalidInput(f"{name}: an empty file, of 0 bytes\n  do: pack it again, or leave it out")
        if texts:
            return Sample(texts[number])
        held = io.BytesIO(entry.bytes(ending))
        if intake.reads == "sound":
            return intake.recording(audio.read_recording(held, name, intake.rate))
        return intake.picture(data.read_photograph(held, name))

    labels = [_label(entry) for entry, _ in kept]
    sizes = [entry.files[ending][1] for entry, ending in kept]
    return Samples(
        kind={"text": "text", "sound": "audio"}.get(intake.reads, "image"),
        name=", ".join(str(path) for path in paths[:3]) + (" …" if len(paths) > 3 else ""),
        ids=each_once([f"{entry.tar.stem}/{entry.key}" for entry, _ in kept]),
        fingerprint=fingerprint(part for (e, ending), size in zip(kept, sizes, strict=True) for part in (e.tar.name, e.key, ending, size)),
        read=read,
        source=lambda number: f"{kept[number][0].tar.absolute()}#{kept[number][0].key}{kept[number][1]}",
        labels=labels if any(label is not None for label in labels) else [],
        texts=texts,
        longest=max(range(len(kept)), key=sizes.__getitem__) if intake.reads == "sound" else None,
    )  # fmt: skip


def _entries(tar: Path) -> list[Entry]:
    if not tar.is_file():
        raise InvalidInput(f"data: {tar}: no such file\n  do: look at the path")
    found: dict[str, Entry] = {}
    try:
        with tarfile.open(tar, "r:") as held:
            for member in held:
                folder, _, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                if member.isfile() and stem and dot:
                    key = f"{folder}/{stem}" if folder else stem
                    entry = found.setdefault(key, Entry(tar, key))
                    entry.files[f".{ending.lower()}"] = (member.offset_data, member.size)
            end = max((sum(place) for entry in found.values() for place in entry.files.values()), default=0)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InvalidInput(
            f"data: {tar} is no tar that can be read in place ({str(error).splitlines()[0]})\n"
            "  do: give it without compression, or make it again"
        ) from error
    if end > tar.stat().st_size:
        raise InvalidInput(f"data: {tar} breaks off\n  do: copy or make it again")
    return list(found.values())


def _label(entry: Entry) -> Label:
    if ".cls" in entry.files:
        return entry.bytes(".cls").decode("utf-8", "replace").strip() or None
    if ".json" in entry.files:
        try:
            told = json.loads(entry.bytes(".json"))
        except ValueError:
            return None
        label = told.get("label") if isinstance(told, dict) else None
        return label if isinstance(label, (int, str)) and not isinstance(label, bool) else None
    return None
