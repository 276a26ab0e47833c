"""`relprop explain "some text"`: texts in, coloured text and results out; and what a model writes, token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

import relprop
from relprop import Explainer, Explanation
from relprop.cli import printing
from relprop.errors import InvalidInput
from relprop.models import usable
from relprop.show.picture import FORMATS
from relprop.targets import Contrast, contrast, main_output
from relprop.text import folder_model, folder_tokenizer, label_id, labels_of, name_of

ENDINGS = (*FORMATS, ".html")
MOST = 10
"""Tokens that are listed, those with most relevance first."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that reads texts, with its tokenizer, ready to explain."""

    folder: str
    explainer: Explainer
    top: int

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its classes."""
        return labels_of(self.explainer.model)


def reader(folder: str, rules: str, method: str, device: str, top: int) -> Reader:
    """The model and tokenizer of a folder saved by transformers. Raises `InvalidInput` where it has not both."""
    tokenizer = folder_tokenizer(folder)
    model = folder_model(folder).to(usable(device))
    return Reader(folder, Explainer(model, rules, method, tokenizer=tokenizer), top)


def target_of(asked: str | None, labels: Sequence[str]) -> Any:
    """The target that the command line names.

    N or NAME: a class, or the next token; POSITION:TOKEN; A-vs-B: a contrast of two of these. A name or token may
    stand in double quotes, which keep its spaces and make digits a token.
    """
    if asked is None:
        return None
    if label_id(labels, asked) is None and "-vs-" in asked:
        first, _, second = asked.partition("-vs-")
        if not first or not second:
            raise InvalidInput(f"--target: {asked!r} names one side\n  do: write A-vs-B")
        return contrast(target_of(first, labels), target_of(second, labels))
    placed = re.fullmatch(r"(-?\d+):(.+)", asked, re.DOTALL)
    if placed and label_id(labels, asked) is None:
        return int(placed[1]), _one(placed[2], labels)
    return _one(asked, labels)


def _one(asked: str, labels: Sequence[str]) -> int | str:
    if len(asked) > 2 and asked[0] == asked[-1] == '"':
        return asked[1:-1]
    whole = re.fullmatch(r"-?\d+", asked) and label_id(labels, asked) is None
    return int(asked) if whole else asked


def place(out: Path | None) -> Path | None:
    """Where the picture goes. Raises `InvalidInput` before anything is computed where that cannot be."""
    if out is None:
        return None
    if out.is_dir() or out.suffix.lower() not in ENDINGS:
        raise InvalidInput(f"--out: {out} has no known ending\n  do: use one of {', '.join(ENDINGS)}")
    if not out.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {out.parent}\n  do: create it, or give another file")
    return out


def run_all(
    given: Sequence[str], who: Reader, target: str | None, generate: int | None, out: Path | None, json: bool
) -> None:
    """Explain texts, or what the model writes on from one."""
    if generate is None:
        run(given, who, target, out, json)
        return
    if len(given) > 1 or target is not None:
        raise InvalidInput(
            "--generate: it explains what the model writes on from one text\n"
            "  do: give one text, and leave --target out"
        )
    write(given[0], who, generate, out, json)


# ---------------------------------------------------------------- one text, or several


def run(texts: Sequence[str], who: Reader, target: str | None, out: Path | None, json: bool) -> None:
    """Explain texts, print what came out, and write the picture."""
    asked = target_of(target, who.labels)
    with printing.working("explaining"):
        explanation = who.explainer(list(texts), asked)
        titles = [_title(who, explanation, row) for row in range(len(texts))]
        if out is not None:
            explanation.save(out, title=titles)
    if json:
        printing.print_json("explain", as_json(who, explanation, out))
        return
    _print_head(who)
    for row in range(len(texts)):
        _print_one(who, explanation, row)
    if out is not None:
        printing.print_field("picture", str(out))


def _print_head(who: Reader) -> None:
    model, explainer = who.explainer.model, who.explainer
    rules = f", rules {explainer.composite.name}" if explainer.method == "lrp" else ""
    printing.print_field("model", f"{type(model).__name__}, {who.folder}")
    printing.print_field("method", f"{explainer.method}{rules}")


def _print_one(who: Reader, explanation: Explanation, row: int) -> None:
    printing.print_field("explained", _title(who, explanation, row))
    printing.print_gap()
    print_coloured(explanation, row)
    printing.print_gap()
    classes = largest(who, explanation, row)
    if classes:
        rows = [
            (repr(c["name"]) if c["token"] else c["name"], str(c["index"]), f"{c['score']:.4g}",
             f"{100 * c['probability']:.1f} %")
            for c in classes
        ]  # fmt: skip
        numbers = ("number", "score", "probability")
        printing.print_table(("largest outputs", *numbers), rows, numbers)
        printing.print_gap()
    print_tokens(explanation, row)
    printing.print_gap()
    if explanation.audit is not None:
        printing.print_audit(explanation.audit, row, "token")
        printing.print_gap()


def print_coloured(explanation: Explanation, row: int) -> None:
    """The text in the colours of its tokens' relevance; plain where the output is no terminal."""
    from relprop import show

    text = explanation.text
    assert text is not None
    (one,) = show.coloured([explanation.tokens[row]], [text.texts[row]])
    printing.stdout().print(show.text_terminal(one))


def print_tokens(explanation: Explanation, row: int) -> None:
    """The tokens with most relevance."""
    tokens = sorted(explanation.tokens[row], key=lambda token: -abs(token.relevance))
    rows = [
        (token.text.strip() or repr(token.text), f"{token.relevance:+.4g}", f"{token.start}–{token.end}")
        for token in tokens[:MOST]
    ]
    rest = tokens[MOST:]
    if rest:
        rows.append((f"{len(rest)} others", f"{sum(token.relevance for token in rest):+.4g}", ""))
    printing.print_table(("token", "relevance", "characters"), rows, ("relevance", "characters"))


def _title(who: Reader, explanation: Explanation, row: int) -> str:
    return f"{target_name(who, explanation.target, row)}, score {float(explanation.score[row]):.4g}"


def target_name(who: Reader, target: Any, row: int) -> str:
    """The explained output in words: a class by its name, a token with its place."""
    if isinstance(target, Contrast):
        return f"{target_name(who, target.a, row)} rather than {target_name(who, target.b, row)}"
    one = target[row] if isinstance(target, (list, torch.Tensor)) else target
    if isinstance(one, tuple):
        position, number = one
        name = label(who, number) if _labels_tokens(who) else repr(token_name(who, number))
        return f"{name} at position {position}"
    return label(who, int(one))


def label(who: Reader, index: int) -> str:
    """The name of a class."""
    return who.labels[index] if index < len(who.labels) else f"output {index}"


def token_name(who: Reader, number: int) -> str:
    """What a token is called."""
    return name_of(who.explainer.tokenizer, number)


def _labels_tokens(who: Reader) -> bool:
    return "TokenClassification" in type(who.explainer.model).__name__


def largest(who: Reader, explanation: Explanation, row: int) -> list[dict[str, Any]]:
    """The largest outputs: classes, or tokens at the explained place, with the softmax of the scores."""
    output = main_output(explanation.output)[row].detach().double().cpu()
    target = explanation.target.a if isinstance(explanation.target, Contrast) else explanation.target
    per_token = output.dim() == 2
    if per_token:
        one = target[row] if isinstance(target, list) else target
        output = output[one[0]]
    if output.dim() != 1 or len(output) < 2:
        return []
    probability = output.softmax(0)
    tokens = per_token and not _labels_tokens(who)
    return [
        {
            "index": index,
            "name": token_name(who, index) if tokens else label(who, index),
            "token": tokens,
            "score": float(output[index]),
            "probability": float(probability[index]),
        }
        for index in output.topk(min(who.top, len(output))).indices.tolist()
    ]


def as_json(who: Reader, explanation: Explanation, out: Path | None) -> dict[str, Any]:
    """The results as plain values."""
    return {
        "model": who.folder,
        "class": type(who.explainer.model).__name__,
        "method": who.explainer.method,
        "rules": who.explainer.composite.name if who.explainer.method == "lrp" else None,
        "results": [_result(who, explanation, row) for row in range(len(explanation.score))],
        "picture": None if out is None else str(out),
    }


def _result(who: Reader, explanation: Explanation, row: int) -> dict[str, Any]:
    assert explanation.text is not None
    return {
        "text": explanation.text.texts[row],
        "target": _plain(explanation.target, row),
        "name": target_name(who, explanation.target, row),
        "score": float(explanation.score[row]),
        "top": largest(who, explanation, row),
        "tokens": [token._asdict() for token in explanation.tokens[row]],
        "audit": None if explanation.audit is None else printing.audit_json(explanation.audit, row),
    }


def _plain(target: Any, row: int) -> Any:
    if isinstance(target, Contrast):
        return {"for": _plain(target.a, row), "against": _plain(target.b, row)}
    one = target[row] if isinstance(target, (list, torch.Tensor)) else target
    return list(one) if isinstance(one, tuple) else int(one)


# ---------------------------------------------------------------- what a model writes


def write(prompt: str, who: Reader, most: int, out: Path | None, json: bool) -> None:
    """Let the model write on from a prompt, and explain each token it writes."""
    with printing.working("writing and explaining"):
        written = relprop.explain_generation(who.explainer, prompt, max_new_tokens=most)
        if out is not None:
            written.save(out)
    if json:
        content = as_json(who, written[0], out)
        content["results"] = [
            _result(who, one, 0) | {"text": prompt, "written": written.written}
            for one in written.explanations
        ]
        printing.print_json("explain", content)
        return
    _print_head(who)
    printing.print_field("prompt", prompt)
    printing.print_field("written", written.written.strip())
    printing.print_gap()
    rows = []
    for step, one in zip(written.steps, written.explanations, strict=True):
        most_of = sorted(one.tokens[0], key=lambda token: -abs(token.relevance))[:3]
        words = ", ".join(f"{token.text.strip()} {token.relevance:+.3g}" for token in most_of)
        gap = "" if one.audit is None else f"{float(one.audit.gap[0]):+.1e}"
        rows.append((step.text, f"{float(one.score[0]):.4g}", words, gap))
    printing.print_table(("written", "score", "because of", "gap"), rows, ("score", "gap"))
    printing.print_gap()
    printing.stdout().print(Text("relevance of each token for all that was written:"))
    from relprop import show

    whole = written[0].text
    assert whole is not None
    (total,) = show.coloured([written.tokens], whole.texts)
    printing.stdout().print(show.text_terminal(total))
    if out is not None:
        printing.print_gap()
        printing.print_field("picture", str(out))
