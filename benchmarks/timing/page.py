"""Measured figures as the tables of docs/benchmarks.md, between the marks that name them there."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Data = dict[str, Any]
"""What `figures.as_data` gives: settings, versions and figures."""

NAMES = {
    "vgg11": "VGG-11",
    "vgg16": "VGG-16",
    "resnet50": "ResNet-50",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "convnext_tiny": "ConvNeXt-T",
    "vit_b_16": "ViT-B/16",
    "decoder": "decoder",
    "lstm": "LSTM",
}

PRESETS = (
    "epsilon",
    "epsilon_plus_flat",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "attn_lrp",
    "lrp_all",
)

TEN = "epsilon, 10 targets of one input"
AUDIT, UNAUDITED = "audit's share", "without audit"
CAPTURE = "capture and plan, over a bare torch.export"
OPEN = "torch.export with open sizes, over a bare one"
WITHIN = "torch.export within a capture, over a bare one"
PASSES = "relprop's passes of a capture, over a bare torch.export"
CHECK = "check of a capture, over gradient × input"


def filled(page: str, data: Data, others: Mapping[str, Data]) -> str:
    """The page with every table between `<!-- figures: NAME -->` and `<!-- end -->` made anew from the figures; those marked
    `<!-- figures: NAME of OTHER -->` from others, of other machines."""

    def made(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]](others[found[3]] if found[3] else data)}\n{found[4]}"

    marks = r"(<!-- figures: (\w+)(?: of ([\w-]+))? -->).*?(<!-- end -->)"
    return re.sub(marks, made, page, flags=re.DOTALL)


def measured(data: Data) -> str:
    """What was measured on what: a sentence or two."""
    given, versions = data["settings"], data["versions"]
    torch = versions["torch"].partition("+")[0]
    importing = _find(data, "import, beyond torch's", "")
    seconds = (
        "" if importing is None else f" `import relprop` takes {_number(importing)} s beyond `import torch`."
    )
    return (
        f"Measured with {given['threads']} threads, torch {torch}, random weights, {given['batch']} images of"
        f" {given['size']} × {given['size']}, {given['rounds']} rounds (three for ten targets, profiles and other tools), by the clock on"
        f" the wall. **Bold** misses its target.{seconds}"
    )


def table(data: Data) -> str:
    """The promised figures, a column for each model."""
    models = [name for name in NAMES if any(figure["model"] == name for figure in data["figures"])]
    rows = [_row(f"`{preset}`", data, models, preset) for preset in PRESETS]
    rows.append(_row("the audit's share, %", data, models, AUDIT, "{:.1f}"))
    rows.append(_row("ten targets", data, models, TEN, "{:.1f}"))
    rows.append(_row("peak memory, `epsilon`", data, models, "peak memory, epsilon"))
    others = [f"peak memory, {preset}" for preset in PRESETS[1:]]
    rows.append(["peak memory, the other rules", *(_range(data, model, others) for model in models)])
    rows.append(_row("capture and plan, over a bare `torch.export`", data, models, CAPTURE, "{:.1f}"))
    rows.append(_row("… of it torch.export, its sizes open", data, models, WITHIN))
    rows.append(_row("… of it relprop's passes", data, models, PASSES))
    rows.append(_row("… torch.export with open sizes alone", data, models, OPEN))
    rows.append(["… in seconds", *(_capture_seconds(data, model) for model in models)])
    rows.append(_row("the check before its first use", data, models, CHECK))
    rows.append(_row("from the cache, ms", data, models, "capture and plan, from the cache", "{:.1f}"))
    return _markdown(["", *(NAMES[model] for model in models)], [row for row in rows if any(row[1:])])


def rivals(data: Data) -> str:
    """How many times longer others take."""
    tools = ("zennit", "captum", "autolrp")
    models = [
        m
        for m in NAMES
        if any("time over relprop's" in f["what"] and f["model"] == m for f in data["figures"])
    ]
    columns = [(model, tool) for model in models for tool in tools]
    rows = []
    for preset in PRESETS:
        cells = [_find(data, f"{tool}'s time over relprop's, {preset}", model) for model, tool in columns]
        rows.append([f"`{preset}`", *("" if cell is None else _number(cell) for cell in cells)])
    head = [f"{NAMES[model]}: {'autoLRP' if tool == 'autolrp' else tool}" for model, tool in columns]
    return _markdown(["", *head], [row for row in rows if any(row[1:])])


def profile(data: Data) -> str:
    """Where the time of the explanations goes that miss their target, beside gradient × input of the same model."""
    rows: list[list[str]] = []
    for model, name in NAMES.items():
        missed = [
            (figure, own, preset)
            for preset in (*PRESETS, TEN)
            if (figure := _find(data, preset, model)) and figure["verdict"] == "missed"
            if (own := _find(data, f"kernels, {preset}", model))
        ]
        base = _find(data, "kernels, gradient × input", model)
        audits = [row for preset in PRESETS if (row := _audit(data, model, preset))]
        if base is None or not (missed or audits):
            continue
        rows.append([name, "", "", "", *_kernels(base)])
        for figure, own, preset in missed:
            label = "ten targets of one input" if preset == TEN else f"`{preset}`"
            target, needs = figure["target"], own["detail"]["arithmetic"]
            arithmetic = f"**{needs:.2f}**" if round(needs, 2) > target else f"{needs:.2f}"
            rows.append([label, f"{target:g}", f"{figure['figure']:.2f}", arithmetic, *_kernels(own)])
        rows += audits
    groups = _GROUPS if rows else ()
    head = ["", "target", "measured", "arithmetic", *groups, "all kernels", "call over kernels"]
    return _markdown(head, rows)


def _audit(data: Data, model: str, preset: str) -> list[str] | None:
    """The row of an audit whose share misses its target: what its kernels add to those of the call without it."""
    share, whole = _find(data, AUDIT, model), _find(data, f"kernels, {preset}", model)
    without = _find(data, f"kernels, {preset}, {UNAUDITED}", model)
    if share is None or share["verdict"] != "missed" or whole is None or without is None:
        return None
    own, other = (figure["detail"]["groups"] for figure in (whole, without))
    added = {group: own[group] - other[group] for group in _GROUPS}
    cells = [f"{added[group]:.0f}" if abs(added[group]) >= 0.5 else "" for group in _GROUPS]
    total = 100 * (whole["figure"] - without["figure"])
    return [f"the audit of `{preset}`, %", "3", f"{share['figure']:.1f}", "", *cells, f"{total:.0f}", ""]


_GROUPS = {
    "convolutions forward": "convolutions forward",
    "convolutions backward": "backward",
    "matrix products, attention": "matrix products, attention",
    "normalisation": "normalisation",
    "pooling": "pooling",
    "elementwise": "elementwise",
    "sums": "sums",
    "copies": "copies",
}


def _kernels(figure: Data) -> list[str]:
    parts = figure["detail"]["groups"]
    cells = [f"{parts[group]:.0f}" if parts[group] >= 0.5 else "" for group in _GROUPS]
    return [*cells, f"{100 * figure['figure']:.0f}", f"{figure['detail']['wall over kernels']:.2f}"]


def _find(data: Data, what: str, model: str) -> Data | None:
    return next((f for f in data["figures"] if f["what"] == what and f["model"] == model), None)


def _number(figure: Data, form: str = "{:.2f}") -> str:
    text = form.format(figure["figure"])
    return f"**{text}**" if figure["verdict"] == "missed" else text


def _row(label: str, data: Data, models: Iterable[str], what: str, form: str = "{:.2f}") -> list[str]:
    cells = (_find(data, what, model) for model in models)
    return [label, *("" if cell is None else _number(cell, form) for cell in cells)]


def _range(data: Data, model: str, names: Iterable[str]) -> str:
    found = [figure for name in names if (figure := _find(data, name, model)) is not None]
    if not found:
        return ""
    least, most = (f"{choose(f['figure'] for f in found):.2f}" for choose in (min, max))
    text = least if least == most else f"{least}–{most}"
    return f"**{text}**" if any(figure["verdict"] == "missed" for figure in found) else text


def _capture_seconds(data: Data, model: str) -> str:
    figure = _find(data, CAPTURE, model)
    if figure is None or figure["detail"] is None:
        return ""
    return f"{statistics.median(figure['detail']['capture_seconds']):.1f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: dict[str, Callable[[Data], str]] = {
    "measured": measured,
    "table": table,
    "rivals": rivals,
    "profile": profile,
}
