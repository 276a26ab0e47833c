"""The presets: composites as data. A new one is a row of `PRESETS`.

Names without a stroke are relprop's own. "toolbox/preset" reproduces that toolbox's conventions;
docs/rules.md says where one cannot be met.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relprop.engine.plan import Composite, Where
from relprop.engine.rules import (
    Addition,
    AlphaBeta,
    Attention,
    Epsilon,
    Flat,
    Gamma,
    MaxPool,
    Pass,
    Product,
    Rule,
    Softmax,
    WSquare,
    ZBox,
    ZPlus,
)
from relprop.errors import InvalidInput

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation per channel of pixels in 0..1, customary for networks trained on ImageNet."""


def pixel_bounds(
    mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1]
) -> tuple[Tensor, Tensor]:
    """Black and white after normalisation: (0 − mean)/std and (1 − mean)/std, each (C, 1, 1)."""
    shift, scale = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (mean, std))
    return -shift / scale, (1 - shift) / scale


LOW, HIGH = pixel_bounds()

Pair = tuple[Where, Rule]


def _dense(convolution: Rule, linear: Rule) -> tuple[Pair, ...]:
    return ("convolution", convolution), ("linear", linear)


def _zennit(convolution: Rule, linear: Rule) -> tuple[Pair, ...]:
    """zennit 0.5.1: batch normalisation that is not merged passes; sums and averages have ε = 1e-6."""
    return (*_dense(convolution, linear), ("batch_norm", Pass()))


def _exact(rule: type[Epsilon | AlphaBeta | ZPlus | Flat | WSquare], **options: object) -> Rule:
    """A rule with iNNvestigate's stabiliser: 1e-7 where a denominator is exactly 0, nothing elsewhere."""
    return rule(epsilon=1e-7, stabiliser="exact_zero_only", **options)  # type: ignore[arg-type]


_Z = (("pool", _exact(Epsilon)), ("addition", Addition(epsilon=0.0)))
"""iNNvestigate shares averages and sums by its Z rule."""


def _innvestigate(rule: Rule) -> tuple[Pair, ...]:
    return ("weighted", rule), ("batch_norm", rule), *_Z


def _sequential(convolution: Rule) -> tuple[Pair, ...]:
    return (*_dense(convolution, Epsilon(0.1)), *_Z)


def _attention(softmax: Softmax, attention: Attention) -> tuple[Pair, ...]:
    product = Product("signal", activated=True) if attention.activated else Product("half")
    return ("weighted", Epsilon(1e-6)), ("softmax", softmax), ("product", attention), ("product", product)


def _everywhere(linear: Rule, epsilon: float, *more: Pair) -> tuple[Pair, ...]:
    return (
        ("weighted", linear),
        ("batch_norm", linear),
        ("pool", linear),
        ("addition", Addition(epsilon=epsilon)),
        *more,
    )


_A1B0, _A2B1 = (_exact(AlphaBeta, alpha=a, beta=a - 1, full_bias=True) for a in (1.0, 2.0))
_A2B1_IB = _exact(AlphaBeta, alpha=2.0, beta=1.0, bias="ignore")
_PLUS_IB = _exact(ZPlus)
_GATES = Epsilon(1e-3)  # Arras et al. 2017


def _gated(product: Literal["signal", "half", "proportional"]) -> tuple[Pair, ...]:
    return ("weighted", _GATES), ("product", Product(product)), ("addition", Addition(epsilon=1e-3))


PRESETS: dict[str, Composite] = {}


def _row(name: str, about: str, rules: tuple[Pair, ...], fold: bool = True) -> None:
    PRESETS[name] = Composite(rules, fold=fold, name=name, about=about)


# fmt: off
_row("auto",
     "a first choice for every network: γ = 0.1 in layers with weights, ε in the last, in recurrent layers and in norms;"
     " attention by AttnLRP, and γ = 0.01 in the linear layers and patches of a network that has it",
     (("recurrent", _GATES), ("last", Epsilon(1e-6)), ("tokenwise", Gamma(0.01)), ("weighted", Gamma(0.1)),
      ("norm", Epsilon(1e-6))))
_row("epsilon",
     "ε = 1e-6 in every linear operation (Bach et al. 2015, Eq. 58)",
     (("weighted", Epsilon(1e-6)),))
_row("epsilon_plus",
     "z⁺ in convolutions, ε in linear layers (Kohlbrenner et al. 2020)",
     _dense(ZPlus(), Epsilon(1e-6)))
_row("epsilon_plus_flat",
     "z⁺ in convolutions, ε in linear layers, flat in the first: smooth over neighbouring pixels",
     (("first", Flat()), *_dense(ZPlus(), Epsilon(1e-6))))
_row("epsilon_gamma_box",
     "zᴮ in the first layer (ImageNet-normalised pixels), γ in convolutions, ε in linear layers",
     (("first", ZBox(LOW, HIGH)), *_dense(Gamma(0.25), Epsilon(1e-6))))
_row("epsilon_alpha2_beta1",
     "α2β1 in convolutions, ε in linear layers: shows what speaks against the target too",
     _dense(AlphaBeta(2, 1), Epsilon(1e-6)))
_row("epsilon_alpha2_beta1_flat",
     "α2β1 in convolutions, ε in linear layers, flat in the first",
     (("first", Flat()), *_dense(AlphaBeta(2, 1), Epsilon(1e-6))))
_row("deep_taylor",
     "deep Taylor decomposition (Montavon et al. 2017): z⁺, w² in the first layer; for positive scores",
     (("first", WSquare()), ("weighted", ZPlus())))
_row("attn_lrp",
     "transformers (Achtibat et al. 2024): ε, products by halves, softmax by its Taylor expansion",
     _attention(Softmax("taylor"), Attention("half", softmax="taylor")))
_row("cp_lrp",
     "transformers (Ali et al. 2022): ε, attention weights and gates are constants, all goes to the values",
     _attention(Softmax("constant"), Attention("signal", softmax="constant", activated=True)))
_row("lrp_all",
     "recurrent networks (Arras et al. 2017): ε = 1e-3, the signal gets all of a product, the gate nothing",
     _gated("signal"))
_row("lrp_half",
     "recurrent networks: ε = 1e-3, gate and signal get half of a product each",
     _gated("half"))
_row("lrp_prop",
     "recurrent networks (Ding et al. 2017): ε = 1e-3, gate and signal share a product by their values",
     _gated("proportional"))

_row("zennit/epsilon_plus",
     "zennit 0.5.1 EpsilonPlus: z⁺ with its bias in convolutions, ε = 1e-6 in linear layers",
     _zennit(ZPlus(bias="absorb"), Epsilon(1e-6)))
_row("zennit/epsilon_plus_flat",
     "zennit 0.5.1 EpsilonPlusFlat: as epsilon_plus, flat in the first layer",
     (("first", Flat()), *_zennit(ZPlus(bias="absorb"), Epsilon(1e-6))))
_row("zennit/epsilon_alpha2_beta1",
     "zennit 0.5.1 EpsilonAlpha2Beta1: α2β1 in convolutions, ε = 1e-6 in linear layers",
     _zennit(AlphaBeta(2, 1), Epsilon(1e-6)))
_row("zennit/epsilon_alpha2_beta1_flat",
     "zennit 0.5.1 EpsilonAlpha2Beta1Flat: as epsilon_alpha2_beta1, flat in the first layer",
     (("first", Flat()), *_zennit(AlphaBeta(2, 1), Epsilon(1e-6))))
_row("zennit/epsilon_gamma_box",
     "zennit 0.5.1 EpsilonGammaBox with the bounds of ImageNet-normalised pixels",
     (("first", ZBox(LOW, HIGH)), *_zennit(Gamma(0.25), Epsilon(1e-6))))
_row("zennit/excitation_backprop",
     "zennit 0.5.1 ExcitationBackprop: z⁺ with its bias in every layer with weights",
     _zennit(ZPlus(bias="absorb"), ZPlus(bias="absorb")))

_row("innvestigate/lrp_z",
     "iNNvestigate LRPZ: LRP-0, batch normalisation a layer of its own",
     _innvestigate(_exact(Epsilon)), fold=False)
_row("innvestigate/lrp_epsilon",
     "iNNvestigate LRPEpsilon: ε = 1e-7, batch normalisation a layer of its own",
     (("weighted", Epsilon(1e-7)), ("batch_norm", Epsilon(1e-7)), *_Z), fold=False)
_row("innvestigate/lrp_w_square",
     "iNNvestigate LRPWSquare: w² in every layer with weights",
     _innvestigate(_exact(WSquare)), fold=False)
_row("innvestigate/lrp_flat",
     "iNNvestigate LRPFlat: flat in every layer with weights",
     _innvestigate(_exact(Flat)), fold=False)
_row("innvestigate/lrp_alpha_2_beta_1",
     "iNNvestigate LRPAlpha2Beta1: α2β1 with the whole bias in both denominators",
     _innvestigate(_A2B1), fold=False)
_row("innvestigate/lrp_alpha_1_beta_0",
     "iNNvestigate LRPAlpha1Beta0: α1β0 with the whole bias in the denominator",
     _innvestigate(_A1B0), fold=False)
_row("innvestigate/lrp_alpha_2_beta_1_ib",
     "iNNvestigate LRPAlpha2Beta1IgnoreBias: α2β1 without bias",
     _innvestigate(_A2B1_IB), fold=False)
_row("innvestigate/lrp_alpha_1_beta_0_ib",
     "iNNvestigate LRPAlpha1Beta0IgnoreBias: α1β0 without bias",
     _innvestigate(_PLUS_IB), fold=False)
_row("innvestigate/lrp_z_plus",
     "iNNvestigate LRPZPlus: α1β0 without bias",
     _innvestigate(_PLUS_IB), fold=False)
_row("innvestigate/lrp_sequential_preset_a",
     "iNNvestigate LRPSequentialPresetA: α1β0 in convolutions, ε = 0.1 in dense layers",
     _sequential(_A1B0))
_row("innvestigate/lrp_sequential_preset_b",
     "iNNvestigate LRPSequentialPresetB: α2β1 in convolutions, ε = 0.1 in dense layers",
     _sequential(_A2B1))
_row("innvestigate/lrp_sequential_preset_a_flat",
     "iNNvestigate LRPSequentialPresetAFlat: preset A, flat in the first layer",
     (("first", _exact(Flat)), *_sequential(_A1B0)))
_row("innvestigate/lrp_sequential_preset_b_flat",
     "iNNvestigate LRPSequentialPresetBFlat: preset B, flat in the first layer",
     (("first", _exact(Flat)), *_sequential(_A2B1)))
_row("innvestigate/deep_taylor",
     "iNNvestigate DeepTaylor: α1β0 without bias, w² in the last layer, averages shared evenly",
     (("last", _exact(WSquare)), ("weighted", _PLUS_IB), ("pool", _exact(Flat)),
      ("addition", Addition(epsilon=0.0))))

_row("captum/default",
     "captum 0.9 LRP without rules of its own: ε = 1e-9 everywhere, batch normalisation a layer of its own",
     _everywhere(Epsilon(1e-9), 1e-9), fold=False)

_row("lrp_toolbox/simple",
     "LRP toolbox: LRP-0, stabiliser 1e-16; equal maxima share",
     _everywhere(Epsilon(1e-16), 1e-16, ("max", MaxPool("split"))), fold=False)
_row("lrp_toolbox/epsilon",
     "LRP toolbox: ε = 0.01; equal maxima share",
     _everywhere(Epsilon(0.01), 0.01, ("max", MaxPool("split"))), fold=False)
_row("lrp_toolbox/alpha2_beta1",
     "LRP toolbox: α2β1 in layers with weights and sum pools; equal maxima share",
     _everywhere(AlphaBeta(2, 1, epsilon=1e-16), 1e-16, ("max", MaxPool("split"))), fold=False)
_row("lrp_toolbox/flat",
     "LRP toolbox: flat in layers with weights and sum pools",
     _everywhere(Flat(epsilon=0.0), 1e-16, ("max", MaxPool("split"))), fold=False)
_row("lrp_toolbox/w_square",
     "LRP toolbox: w² in layers with weights and sum pools",
     _everywhere(WSquare(epsilon=0.0), 1e-16, ("max", MaxPool("split"))), fold=False)
# fmt: on


def epsilon_gamma_box(low: float | Tensor, high: float | Tensor, gamma: float = 0.25) -> Composite:
    """The preset of that name for inputs in [low, high]: numbers, or tensors that broadcast to one sample."""
    about = "zᴮ in the first layer, γ in convolutions, ε in linear layers"
    rules = (("first", ZBox(low, high)), *_dense(Gamma(gamma), Epsilon(1e-6)))
    return Composite(rules, name="epsilon_gamma_box", about=about)


def presets() -> dict[str, str]:
    """The names of all presets, with one line on each."""
    return {name: composite.about for name, composite in PRESETS.items()}


def named(name: str) -> Composite:
    """The preset of that name. Raises `InvalidInput` for an unknown one, with the names that there are."""
    if name not in PRESETS:
        raise InvalidInput(f"rules: no preset {name!r}\n  do: one of {', '.join(PRESETS)}")
    return PRESETS[name]
