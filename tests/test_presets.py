"""Every preset plans, closes its account and, under a toolbox's name, gives that toolbox's numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relprop
from golden.networks import NETWORKS
from relprop.engine.presets import HIGH, LOW, PRESETS, epsilon_gamma_box, named, pixel_bounds
from test_reference import digits, lenet, load, relative

GOLDEN = Path(__file__).parent / "golden"
NEEDS_IMAGES = [name for name in PRESETS if name.endswith("epsilon_gamma_box")]

TOLERANCE = {("vgg", "captum/default"): 1e-8}
"""Relative to the largest relevance, 1e-9 by default. captum's max pooling divides by z + 1e-9."""


class Residual(nn.Module):
    """Convolutions with batch normalisation, max pooling, a residual sum and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(x + self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    torch.manual_seed(0)
    network = Residual().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return network


@pytest.fixture(scope="module")
def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_closes_its_account_on_a_residual_network(name: str, residual: nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    explanation = relprop.explain(residual, x, rules=name)
    assert explanation.relevance.shape == x.shape
    assert explanation.audit is not None and explanation.audit.closes
    assert explanation.relevance.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in NEEDS_IMAGES])
def test_every_preset_closes_its_account_on_a_perceptron(name: str, perceptron: nn.Module) -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(1)).double()
    explanation = relprop.explain(perceptron, x, rules=name)
    assert explanation.audit is not None and explanation.audit.closes


@pytest.mark.parametrize("name", NEEDS_IMAGES)
def test_box_presets_refuse_what_is_no_normalised_image(
    name: str, residual: nn.Module, perceptron: nn.Module
) -> None:
    with pytest.raises(relprop.InvalidInput, match="ZBox"):
        relprop.explain(perceptron, torch.zeros(1, 7).double(), rules=name)
    with pytest.raises(relprop.InvalidInput, match=r"ZBox.*\n.*normalised"):
        relprop.explain(residual, torch.full((1, 3, 8, 8), 100.0).double(), rules=name)


def test_box_bounds_are_black_and_white_after_normalisation() -> None:
    assert torch.allclose(LOW[:, 0, 0].float(), torch.tensor([-2.1179, -2.0357, -1.8044]), atol=1e-4)
    assert torch.allclose(HIGH[:, 0, 0].float(), torch.tensor([2.2489, 2.4286, 2.64]), atol=1e-4)
    low, high = pixel_bounds((0.5,), (0.25,))
    assert (low.flatten().tolist(), high.flatten().tolist()) == ([-2.0], [2.0])


def test_box_preset_takes_bounds_of_ones_own(residual: nn.Module) -> None:
    x = torch.rand(1, 3, 8, 8).double()
    explanation = relprop.explain(residual, x, rules=epsilon_gamma_box(0.0, 1.0))
    assert explanation.audit is not None and explanation.audit.closes
    with pytest.raises(relprop.InvalidInput, match="ZBox"):
        relprop.explain(residual, x + 1, rules=epsilon_gamma_box(0.0, 1.0))


def test_presets_are_listed_with_a_line_each() -> None:
    listed = relprop.presets()
    assert listed.keys() == PRESETS.keys()
    assert all(about and "\n" not in about for about in listed.values())
    promised = (
        "auto epsilon epsilon_plus epsilon_plus_flat epsilon_gamma_box epsilon_alpha2_beta1"
        " epsilon_alpha2_beta1_flat deep_taylor attn_lrp cp_lrp lrp_all lrp_half lrp_prop"
        " zennit/epsilon_plus_flat innvestigate/lrp_sequential_preset_a captum/default"
    )
    assert set(promised.split()) <= listed.keys()


def test_an_unknown_preset_names_those_that_there_are() -> None:
    with pytest.raises(relprop.InvalidInput, match=r"no preset 'epsilom'\n.*epsilon_plus"):
        named("epsilom")


def test_recurrent_presets_differ_in_who_gets_the_relevance_of_a_product() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.signal, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.out(torch.sigmoid(self.gate(a)) * torch.tanh(self.signal(b)))

    torch.manual_seed(0)
    network, inputs = Gated().double().eval(), (torch.randn(2, 4).double(), torch.randn(2, 4).double())
    found = {
        name: relprop.explain(network, inputs, rules=name).relevance
        for name in ("lrp_all", "lrp_half", "lrp_prop")
    }
    assert found["lrp_all"][0].abs().max() == 0
    torch.testing.assert_close(found["lrp_half"][1], found["lrp_all"][1] / 2, rtol=1e-12, atol=0)
    assert found["lrp_prop"][0].abs().max() > 0
    assert not torch.allclose(found["lrp_prop"][1], found["lrp_half"][1])


def _golden() -> list[tuple[str, str]]:
    return [
        (path.stem, preset)
        for path in sorted(GOLDEN.glob("*.json"))
        for preset in json.loads(path.read_text()).get("presets", [])
    ]


@pytest.mark.parametrize(("network", "preset"), _golden())
def test_a_toolboxs_preset_gives_that_toolboxs_numbers(network: str, preset: str) -> None:
    with np.load(GOLDEN / f"{network}.npz") as file:
        golden = {key: torch.from_numpy(file[key]) for key in file.files}
    model = NETWORKS[network]()
    model.load_state_dict(
        {key.removeprefix("weight/"): value for key, value in golden.items() if key.startswith("weight/")}
    )
    explanation = relprop.explain(model, golden["input"], target=golden["target"], rules=preset)
    torch.testing.assert_close(explanation.output, golden["output"], rtol=0, atol=1e-12)
    expected = golden[f"relevance/{preset}"]
    worst = (explanation.relevance - expected).abs().max() / expected.abs().max()
    assert worst < TOLERANCE.get((network, preset), 1e-9)


@pytest.mark.parametrize(
    ("preset", "name", "tolerance"),
    [
        ("simple", "simple", 1e-9),  # its sum pool is an average pool here: other rounding, other ε
        ("alpha2_beta1", "alphabeta_2", 1e-12),
        ("flat", "flat", 1e-12),
        ("w_square", "ww", 1e-12),
    ],
)
def test_the_first_toolboxs_presets_give_its_numbers_for_lenet(
    shared: Path, preset: str, name: str, tolerance: float
) -> None:
    reference = load(shared / "mnist/lenet5_reference_relevance.npz")
    x = digits(load(shared / "mnist/mnist_test.npz")["images"][reference["index"]])
    found = relprop.explain(lenet(shared), x, rules=f"lrp_toolbox/{preset}").relevance[:, 0]
    assert relative(found, torch.from_numpy(reference[f"relevance_{name}"])) < tolerance


def test_the_golden_files_cover_every_preset_of_zennit_and_captum() -> None:
    toolboxes = {name for name in PRESETS if name.startswith(("zennit/", "captum/"))}
    for network in NETWORKS:
        assert {preset for name, preset in _golden() if name == network} == toolboxes


def test_presets_warn_of_nothing_on_a_network_of_one_kind(perceptron: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relprop.Explainer(perceptron, "zennit/epsilon_plus", example=torch.zeros(1, 7).double())


def test_auto_keeps_the_magnitude_of_relevance_small(residual: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    audit = relprop.explain(residual, x, rules="auto").audit
    assert audit is not None and bool((audit.magnitude < 20 * audit.score.abs().clamp(min=0.1)).all())


class Looking(nn.Module):
    """A stem, a convolution over `side` places at a stride, one block of attention (in one operation or written out) and two linear
    layers, (B, 3, 8, 8) to (B, 4)."""

    def __init__(self, side: int = 2, way: str = "written", stride: int = 0, padding: int = 0) -> None:
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.embed = nn.Conv2d(6, 8, side, stride or side, padding)
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(torch.relu(self.stem(x))).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.way == "fused":
            x = nn.functional.scaled_dot_product_attention(q, k, v)
        elif self.way == "written":
            x = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1).to(v.dtype) @ v
        elif self.way == "gated":
            x = q.softmax(-1) * v
        else:
            x = v @ (q.transpose(1, 2) @ k)
        x = self.head(torch.relu(self.out(x)).mean(1))
        return x if self.way != "products" else x.softmax(-1)


def rules_of(model: nn.Module, rules: object = "auto") -> dict[str, relprop.rules.Rule | None]:
    torch.manual_seed(0)
    plan = relprop.Explainer(model.eval(), rules, example=torch.rand(2, 3, 8, 8)).plan
    return {row.module: row.rule for row in plan if row.kind in ("linear", "convolution")}


LESS, GAMMA = relprop.rules.Gamma(0.01), relprop.rules.Gamma(0.1)


@pytest.mark.parametrize("way", ["fused", "written"])
def test_auto_takes_less_gamma_in_the_linear_layers_and_patches_of_a_network_with_attention(
    way: str,
) -> None:
    found = rules_of(Looking(way=way))
    assert found["stem"] == GAMMA  # a convolution like any other
    assert found["embed"] == found["qkv"] == found["out"] == LESS
    assert found["head"] == relprop.rules.Epsilon(1e-6)


@pytest.mark.parametrize(
    ("side", "stride", "padding", "patches"),
    [(1, 1, 0, False), (2, 2, 0, True), (3, 3, 0, True), (3, 3, 1, True), (3, 2, 0, False), (4, 2, 1, False)],
)
def test_patches_are_areas_of_several_places_that_do_not_overlap(
    side: int, stride: int, padding: int, patches: bool
) -> None:
    found = rules_of(Looking(side, "written", stride, padding))
    assert found["embed"] == (LESS if patches else GAMMA)
    assert found["qkv"] == LESS


@pytest.mark.parametrize("way", ["gated", "products"])
def test_gates_by_softmax_and_products_without_one_are_no_attention(way: str) -> None:
    found = rules_of(Looking(way=way))
    assert found["stem"] == found["embed"] == found["qkv"] == found["out"] == GAMMA


def test_a_composite_names_the_layers_of_a_transformer_in_one_word() -> None:
    rule = relprop.rules.Epsilon(0.3)
    found = rules_of(Looking(), relprop.Composite([("tokenwise", rule), ("weighted", relprop.rules.ZPlus())]))
    assert [name for name, one in found.items() if one == rule] == ["embed", "qkv", "out", "head"]
    assert found["stem"] == relprop.rules.ZPlus()
