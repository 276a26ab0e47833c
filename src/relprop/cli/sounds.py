"""`relprop explain recording.wav`: a recording in, a picture of its relevance over time and results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from relprop import Explainer, Explanation
from relprop.audio import Recording
from relprop.cli import printing
from relprop.cli.examples import heard
from relprop.cli.photos import places
from relprop.errors import InvalidInput
from relprop.models import Loaded
from relprop.targets import main_output


@dataclass(frozen=True, slots=True)
class Heard:
    """What the command line asks of a recording."""

    recordings: Sequence[str]
    model: str
    weights: str | None
    target: str | None
    rules: str
    method: str
    classes: Path | None
    device: str
    rate: int | None
    channels: int
    top: int


@dataclass(frozen=True, slots=True)
class Listened:
    """What came out: the recording as the model took it, the name of the input that is explained."""

    file: Path
    recording: Recording
    loaded: Loaded
    explanation: Explanation
    source: str
    picture: Path

    @property
    def relevance(self) -> Tensor:
        """The relevance of the one recording, without the batch."""
        whole = self.explanation.relevance
        found = whole[self.source] if isinstance(whole, dict) else whole
        return found[0]  # type: ignore[no-any-return]


def run(asked: Heard, out: Path | None, json: bool) -> None:
    """Explain one recording, print what came out, and write the picture."""
    if len(asked.recordings) > 1:
        raise InvalidInput(
            f"inputs: {len(asked.recordings)} recordings\n  do: explain them one after the other"
        )
    file = Path(asked.recordings[0])
    (picture,) = places([file], out, False)
    with printing.working("explaining"):
        found = listened(asked, file, picture)
        draw(found)
    if json:
        printing.print_json("explain", as_json(asked, found))
    else:
        print_result(asked, found)


def listened(asked: Heard, file: Path, picture: Path) -> Listened:
    """The recording, explained."""
    example = heard(file, asked.model, asked.weights, asked.device, asked.rate, asked.channels, asked.classes)
    loaded = example.loaded
    assert example.recording is not None
    explainer = Explainer(loaded.model, asked.rules, asked.method)
    explanation = explainer(example.inputs, loaded.target(asked.target))
    loaded.check_names_of(main_output(explanation.output))
    return Listened(file, example.recording, loaded, explanation, example.source, picture)


def draw(found: Listened) -> None:
    """The picture: over the waveform where samples are explained, else of the spectrogram."""
    from relprop import show

    relevance = found.relevance
    title = f"{target_name(found)} {float(found.explanation.score[0]):.2f}".replace(" -", " −")
    samples = found.recording.samples
    if relevance.numel() == len(samples):
        picture = show.audio(relevance.reshape(-1), samples, rate=found.recording.rate, title=title)
    elif relevance.dim() == 2:
        bands_first = relevance.shape[0] < relevance.shape[1]
        picture = show.spectrogram(relevance if bands_first else relevance.T, title=title)
    elif relevance.dim() == 1:
        picture = show.audio(relevance, rate=found.recording.rate, title=title)
    else:
        raise InvalidInput(
            f"picture: relevance of shape {tuple(relevance.shape)} a sample is neither a sound nor a spectrogram\n"
            "  do: draw it in Python: relprop.explain(…).relevance"
        )
    show.save(picture, found.picture)


def target_name(found: Listened) -> str:
    """The explained output in words."""
    target = found.explanation.target
    if isinstance(target, Tensor):
        return "the output" if _one_output(found) else found.loaded.class_name(int(target[0]))
    return f"output {target}"


def _one_output(found: Listened) -> bool:
    output: Tensor = main_output(found.explanation.output)
    return output.numel() == 1


def largest(asked: Heard, found: Listened) -> list[dict[str, Any]]:
    """The largest outputs of the recording; empty where the output is no row of classes."""
    output = main_output(found.explanation.output)[0].detach().double().cpu()
    if output.dim() != 1 or len(output) < 2:
        return []
    top = output.topk(min(asked.top, len(output))).indices.tolist()
    return [{"index": i, "name": found.loaded.class_name(i), "score": float(output[i])} for i in top]


def as_json(asked: Heard, found: Listened) -> dict[str, Any]:
    """The results as plain values; relevance is summed over each of `seconds / len(relevance)`."""
    from relprop.show.audio import spans

    relevance = found.relevance.double().cpu()
    if relevance.numel() == len(found.recording.samples):
        over_time = spans(relevance.reshape(-1).numpy(), found.recording.rate).tolist()
    else:
        over_time = relevance.sum(0 if relevance.shape[0] < relevance.shape[-1] else -1).reshape(-1).tolist()
    audit = found.explanation.audit
    target = found.explanation.target
    return {
        "model": found.loaded.name,
        "weights": found.loaded.weights,
        "method": asked.method,
        "rules": asked.rules if asked.method == "lrp" else None,
        "results": [
            {
                "recording": str(found.file),
                "seconds": found.recording.seconds,
                "rate": found.recording.rate,
                "target": int(target[0]) if isinstance(target, Tensor) else target,
                "name": target_name(found),
                "score": float(found.explanation.score[0]),
                "top": largest(asked, found),
                "relevance": over_time,
                "audit": None if audit is None else printing.audit_json(audit, 0),
                "heatmap": str(found.picture),
            }
        ],
    }


def print_result(asked: Heard, found: Listened) -> None:
    """One recording: its outputs, its audit, its picture."""
    heard = found.recording
    rules = f", rules {asked.rules}" if asked.method == "lrp" else ""
    for name, value in (
        ("recording", f"{found.file}, {heard.seconds:.2f} s at {heard.rate} Hz"),
        ("model", f"{found.loaded.name}, weights {found.loaded.weights}"),
        ("method", f"{asked.method}{rules}"),
        ("explained", f"{target_name(found)}, score {float(found.explanation.score[0]):.4g}"),
    ):
        printing.print_field(name, value)
    rows = [(c["name"], str(c["index"]), f"{c['score']:.4g}") for c in largest(asked, found)]
    if rows:
        printing.print_gap()
        printing.print_table(("largest outputs", "class", "score"), rows, ("class", "score"))
    printing.print_gap()
    if found.explanation.audit is not None:
        printing.print_audit(found.explanation.audit, 0, "sample")
        printing.print_gap()
    printing.print_field("heatmap", str(found.picture))
