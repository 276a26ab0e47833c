"""The other methods: known answers, captum's own results, and what all methods have in common."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop.patterns import Patterns, pattern, sums

SAMPLERS = {"integrated_gradients": {}, "occlusion": {}, "shapley": {"samples": 10}}
GRADIENTS = ("gradient", "sensitivity", "gradient_x_input", "deconvolution", "guided_backprop", "grad_cam", "smoothgrad", "deeplift")  # fmt: skip
TRAINING = Patterns(torch.randn(60, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
PATTERNS = {name: {"patterns": TRAINING} for name in ("pattern_net", "pattern_attribution")}
EVERY: dict[str, dict[str, Any]] = {**{name: {} for name in GRADIENTS}, **SAMPLERS, **PATTERNS, "random": {}}
captum = pytest.importorskip("captum.attr", reason="captum is not installed")

every_method = pytest.mark.parametrize(("method", "options"), EVERY.items(), ids=EVERY)


class Small(nn.Module):
    """A functional network: no module is called for its ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.head(F.relu(self.second(y)).mean((2, 3)))


class Modules(nn.Module):
    """The same network of modules, as captum's methods that hook modules need it."""

    def __init__(self, like: Small) -> None:
        super().__init__()
        self.body = nn.Sequential(
            like.first, nn.ReLU(), nn.MaxPool2d(2), like.second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), like.head,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.fixture
def model() -> Small:
    return Small().double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 8, 8, dtype=torch.float64)


TARGET = [0, 2, 1]


def test_all_methods_of_the_interface_exist() -> None:
    names = (
        "lrp", "gradient", "sensitivity", "gradient_x_input", "integrated_gradients", "smoothgrad", "deconvolution",
        "guided_backprop", "grad_cam", "occlusion", "shapley",
    )  # fmt: skip
    assert set(names) <= set(relprop.methods())
    assert all(about and "\n" not in about for about in relprop.methods().values())


@every_method
def test_every_method_gives_the_same_kind_of_explanation(
    method: str, options: dict[str, Any], model: Small, x: Tensor
) -> None:
    explanation = relprop.explain(model, x, TARGET, method=method, **options)
    assert explanation.relevance.shape == x.shape and explanation.relevance.dtype == x.dtype
    assert bool(torch.isfinite(explanation.relevance).all())
    assert explanation.method == method and explanation.audit is None
    assert torch.equal(explanation.target, torch.tensor(TARGET))
    assert torch.allclose(explanation.score, model(x).detach()[range(3), TARGET])
    assert torch.allclose(explanation.output, model(x).detach())
    assert explanation.heatmap() is not None


@every_method
def test_nothing_of_the_model_is_touched(
    method: str, options: dict[str, Any], model: Small, x: Tensor
) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    random = torch.get_rng_state()
    relprop.explain(model, x, TARGET, method=method, **options)
    assert torch.equal(random, torch.get_rng_state())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.grad is None
    assert all(not module._forward_hooks and not module._backward_hooks for module in model.modules())


@every_method
def test_a_batch_is_its_samples(method: str, options: dict[str, Any], model: Small, x: Tensor) -> None:
    explainer = relprop.Explainer(model, method=method, **options)
    together = explainer(x, TARGET).relevance
    singles = torch.cat([explainer(x[i : i + 1], TARGET[i]).relevance for i in range(3)])
    assert torch.allclose(together, singles, atol=1e-12)


@pytest.mark.parametrize("method", ["smoothgrad", "shapley", "random"])
def test_what_is_drawn_is_drawn_from_the_seed(method: str, model: Small, x: Tensor) -> None:
    first, again, other = (
        relprop.explain(model, x, TARGET, method=method, **EVERY[method], seed=seed).relevance
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_kernel_shap_of_a_sample_does_not_depend_on_the_batch(model: Small, x: Tensor) -> None:
    options = {"method": "shapley", "samples": 20, "estimator": "kernel", "features": 2}
    together = relprop.explain(model, x, TARGET, **options).relevance
    alone = relprop.explain(model, x[2:], TARGET[2], **options).relevance
    assert torch.allclose(together[2:], alone, atol=1e-6)  # captum fits in float32


@pytest.mark.parametrize("method", ["smoothgrad", "shapley"])
def test_samplers_state_their_standard_error(method: str, model: Small, x: Tensor) -> None:
    few, many = (relprop.explain(model, x, TARGET, method=method, samples=n) for n in (10, 60))
    assert few.standard_error.shape == x.shape
    assert float(many.standard_error.mean()) < float(few.standard_error.mean())
    assert relprop.explain(model, x, TARGET, method="gradient").standard_error is None


# --- captum's own results


def captums(name: str, model: Small, x: Tensor) -> Tensor:
    module = Modules(model).eval()
    if name == "gradient":
        return captum.Saliency(module).attribute(x, target=TARGET, abs=False)
    if name == "gradient_x_input":
        return captum.InputXGradient(module).attribute(x, target=TARGET)
    if name == "deconvolution":
        return captum.Deconvolution(module).attribute(x, target=TARGET)
    if name == "guided_backprop":
        return captum.GuidedBackprop(module).attribute(x, target=TARGET)
    if name == "integrated_gradients":
        return captum.IntegratedGradients(module).attribute(x, target=TARGET)
    if name == "occlusion":
        with torch.no_grad():
            return captum.Occlusion(module).attribute(x, (2, 1, 1), target=TARGET)
    assert name == "grad_cam"
    cam = captum.LayerGradCam(module, module.body[4]).attribute(x, target=TARGET, relu_attributions=True)
    return F.interpolate(cam, size=x.shape[2:], mode="bilinear") / 2 + torch.zeros_like(x)


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor")
@pytest.mark.parametrize(
    "name",
    ["gradient", "gradient_x_input", "deconvolution", "guided_backprop", "integrated_gradients", "occlusion", "grad_cam"],
)  # fmt: skip
def test_the_numbers_are_captums(name: str, model: Small, x: Tensor) -> None:
    ours = relprop.explain(model, x, TARGET, method=name).relevance
    theirs = captums(name, model, x.clone()).detach()
    exact = 1e-10 if theirs.dtype == torch.float64 else 1e-6  # captum's occlusion is in float32
    assert float((ours - theirs).abs().max()) < exact


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor")
def test_deeplift_is_captums(model: Small, x: Tensor) -> None:
    theirs = captum.DeepLift(Modules(model).eval()).attribute(x.clone(), target=TARGET).detach()
    ours = relprop.explain(model, x, TARGET, method="deeplift").relevance
    assert float((ours - theirs).abs().max()) < 1e-12


@pytest.mark.parametrize("baseline", [0.3, torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 8, 8)])
def test_deeplift_adds_up_where_captum_does_not(baseline: Any, model: Small, x: Tensor) -> None:
    """Max pooling behind ReLUs, a reference that is not 0: captum 0.9's contributions are off by up to a tenth of them."""
    explanation = relprop.explain(model, x, TARGET, method="deeplift", baseline=baseline)
    empty = model(torch.zeros_like(x) + baseline).detach()[range(3), TARGET]
    assert torch.allclose(explanation.relevance.sum((1, 2, 3)), explanation.score - empty, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor")
def test_deeplift_is_captums_on_smooth_functions() -> None:
    smooth = (
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3))
        .double()
        .eval()
    )
    x = torch.randn(4, 5, dtype=torch.float64)
    theirs = captum.DeepLift(smooth).attribute(x.clone(), target=1).detach()
    assert float((relprop.explain(smooth, x, 1, method="deeplift").relevance - theirs).abs().max()) < 1e-10


# --- what each method promises


def test_sensitivity_is_the_squared_gradient(model: Small, x: Tensor) -> None:
    gradient = relprop.explain(model, x, TARGET, method="gradient").relevance
    assert torch.equal(relprop.explain(model, x, TARGET, method="sensitivity").relevance, gradient**2)


@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
def test_gradient_x_input_is_lrp_0_of_a_piecewise_linear_network(model: Small, x: Tensor) -> None:
    plain = relprop.Composite(
        [(w, relprop.rules.Epsilon(0.0)) for w in ("weighted", "pool")] + [("addition", relprop.rules.Addition(epsilon=0.0))]
    )  # fmt: skip
    lrp = relprop.explain(model, x, TARGET, plain).relevance
    ours = relprop.explain(model, x, TARGET, method="gradient_x_input").relevance
    assert torch.allclose(lrp, ours, atol=1e-9)


@pytest.mark.parametrize("method", ["integrated_gradients", "shapley"])
def test_the_sum_is_the_difference_to_the_baseline(method: str, model: Small, x: Tensor) -> None:
    options = {"steps": 400} if method == "integrated_gradients" else {"samples": 10, "features": 2}
    explanation = relprop.explain(model, x, TARGET, method=method, **options)
    empty = model(torch.zeros_like(x)).detach()[range(3), TARGET]
    assert torch.allclose(explanation.relevance.sum((1, 2, 3)), explanation.score - empty, atol=1e-3)


class Everything(nn.Module):
    """Recurrent layer, attention, norm, a product of two data tensors, a maximum over time: nothing is piecewise linear."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(x)[0]
        return self.head((self.norm(self.attention(y, y, y)[0]) * y).amax(1))


def test_deeplift_adds_up_to_the_difference_through_any_operation() -> None:
    model, x = Everything().double().eval(), torch.randn(3, 5, 3, dtype=torch.float64)
    explanation = relprop.explain(model, x, 0, method="deeplift", baseline=0.2)
    difference = explanation.score - model(torch.full_like(x, 0.2)).detach()[:, 0]
    assert torch.allclose(explanation.relevance.sum((1, 2)), difference, atol=1e-7)


def test_deeplift_refuses_a_model_that_decides_by_values() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, 3.0 * x + 1.0, x).sum(1, keepdim=True) + 0 * x

    with pytest.raises(relprop.InvalidInput, match="decides by values"):
        relprop.explain(Chooses().eval(), torch.rand(2, 3) + 0.5, 0, method="deeplift", baseline=-1.0)


def test_a_pattern_is_the_direction_of_the_signal_and_not_the_filter() -> None:
    """Kindermans et al. 2018, Fig. 2: x = s (1, 0) + d (1, 1), and the filter (1, −1) that cancels the distractor."""
    signal, distractor = torch.randn(2, 4000, 1, dtype=torch.float64)
    x = signal * torch.tensor([1.0, 0.0]) + distractor * torch.tensor([1.0, 1.0])
    model = nn.Linear(2, 1, bias=False).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    ours = relprop.explain(model, x[:5], 0, method="pattern_net", patterns=Patterns(x)).relevance
    assert torch.allclose(ours, signal[:5] * torch.tensor([1.0, 0.0], dtype=torch.float64), atol=0.1)


def test_pattern_attribution_of_a_linear_layer_keeps_the_score(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3, bias=False)).double().eval()
    explanation = relprop.explain(model, x, TARGET, method="pattern_attribution", patterns=TRAINING)
    assert torch.allclose(explanation.relevance.sum((1, 2, 3)), explanation.score)  # wᵀa = 1


def test_patterns_of_a_convolution_are_those_of_its_patches() -> None:
    images = torch.randn(20, 2, 6, 6, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    patches = F.unfold(images, 3).transpose(1, 2).reshape(-1, 18)
    dense = pattern(
        sums(lambda w: patches @ w.T, weight.flatten(1), patches @ weight.flatten(1).T), weight.flatten(1)
    )
    own = pattern(sums(lambda w: F.conv2d(images, w), weight, F.conv2d(images, weight)), weight)
    assert torch.allclose(own.flatten(1), dense)


def test_patterns_are_estimated_anew_after_the_weights_changed(model: Small, x: Tensor) -> None:
    held = Patterns(TRAINING.data)
    first = relprop.explain(model, x, TARGET, method="pattern_net", patterns=held).relevance
    with torch.no_grad():
        model.first.weight.mul_(-1)
    again = relprop.explain(model, x, TARGET, method="pattern_net", patterns=held).relevance
    fresh = relprop.explain(
        model, x, TARGET, method="pattern_net", patterns=Patterns(TRAINING.data)
    ).relevance
    assert torch.equal(again, fresh) and not torch.allclose(first, again)


def test_shapley_values_of_few_features_are_the_exact_ones() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * x[:, 1] + 2 * x[:, 2], x.sum(1)], 1)

    x = torch.tensor([[1.0, 3.0, 0.5], [2.0, -1.0, 1.0]], dtype=torch.float64)
    exact = torch.stack([x[:, 0] * x[:, 1] / 2, x[:, 0] * x[:, 1] / 2, 2 * x[:, 2]], 1)
    for estimator in ("sampling", "kernel"):
        found = relprop.explain(Pairs().eval(), x, 0, method="shapley", samples=300, estimator=estimator)
        assert float((found.relevance - exact).abs().max()) < 0.5


def test_grad_cam_takes_the_layer_that_is_named(model: Small, x: Tensor) -> None:
    default = relprop.explain(model, x, TARGET, method="grad_cam").relevance
    first = relprop.explain(model, x, TARGET, method="grad_cam", layer="first").relevance
    assert bool((default >= 0).all()) and not torch.allclose(default, first)


def test_token_ids_are_explained_at_their_embeddings() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            held = self.embedding(ids) * mask[..., None]
            return self.head(F.relu(held).sum(1))

    model = Words().double().eval()
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    for method in ("gradient", "sensitivity", "gradient_x_input", "integrated_gradients", "smoothgrad", "occlusion", "shapley"):  # fmt: skip
        relevance = relprop.explain(model, {"ids": ids, "mask": mask}, 1, method=method).relevance["ids"]
        assert relevance.shape == (2, 3)
        assert float(relevance[0, 2]) == 0 and float(relevance[1].abs().min()) > 0, method
    dropped = relprop.explain(model, {"ids": ids, "mask": mask}, 1, method="occlusion").relevance["ids"]
    without = model(ids, torch.tensor([[0, 1, 0], [0, 1, 1]]))[:, 1]
    assert torch.allclose(dropped[:, 0], (model(ids, mask)[:, 1] - without).detach())


def test_a_callable_target_and_weights_are_explained(model: Small, x: Tensor) -> None:
    weights = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    by_weights = relprop.explain(model, x, weights, method="gradient").relevance
    by_function = relprop.explain(model, x, lambda y: y[:, 0] - y[:, 1], method="gradient").relevance
    assert torch.allclose(by_weights, by_function)


def test_several_targets_and_batches_in_parts(model: Small, x: Tensor) -> None:
    explainer = relprop.Explainer(model, method="gradient", batch_size=2)
    first, second = explainer.explain_targets(x, [0, 1])
    assert first.relevance.shape == x.shape and not torch.equal(first.relevance, second.relevance)
    assert torch.allclose(first.relevance, relprop.explain(model, x, 0, method="gradient").relevance)


def test_recurrent_networks_and_attention_have_gradients() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.attention = (
                nn.LSTM(3, 4, batch_first=True),
                nn.MultiheadAttention(4, 2, batch_first=True),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.lstm(x)[0]
            return self.attention(y, y, y)[0].mean(1)

    model, x = Both().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    found = relprop.explain(model, x, 0, method="gradient").relevance
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(found, expected, atol=1e-10)


# --- bad input

BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "gradients"}, "method: 'gradients' is unknown"),
    ({"method": "gradient", "steps": 3}, "steps"),
    ({"method": "integrated_gradients", "steps": 0}, "steps: 0"),
    ({"method": "integrated_gradients", "quadrature": "simpson"}, "quadrature"),
    ({"method": "integrated_gradients", "baseline": torch.zeros(5)}, "baseline"),
    ({"method": "smoothgrad", "samples": -1}, "samples: -1"),
    ({"method": "smoothgrad", "noise": -0.1}, "noise"),
    ({"method": "occlusion", "window": 9}, "window: 9"),
    ({"method": "occlusion", "window": 2, "stride": 3}, "stride: 3"),
    ({"method": "shapley", "estimator": "exact"}, "estimator"),
    ({"method": "shapley", "features": torch.zeros(3, dtype=torch.long)}, "features"),
    ({"method": "grad_cam", "layer": "third"}, "third"),
    ({"method": "grad_cam", "layer": "head"}, "layer"),
    ({"method": "gradient", "target": 7}, "out of range"),
    ({"method": "deeplift", "baseline": torch.zeros(5)}, "baseline"),
    ({"method": "pattern_net"}, "none"),
    ({"method": "pattern_attribution", "patterns": Patterns(torch.randn(9, 3))}, "shape"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_a_wrong_option_is_one_clear_line(
    options: dict[str, Any], message: str, model: Small, x: Tensor
) -> None:
    with pytest.raises(relprop.InvalidInput, match=message) as caught:
        relprop.explain(model, x, **options)
    assert "\n  do: " in str(caught.value)


def test_a_rectifying_method_is_refused_where_there_is_no_relu() -> None:
    smooth = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)).eval()
    for method in ("deconvolution", "guided_backprop"):
        with pytest.raises(relprop.InvalidInput, match="has none"):
            relprop.explain(smooth, torch.randn(1, 3), method=method)


def test_patterns_refuse_what_has_no_rule_and_data_that_is_none() -> None:
    smooth = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)).eval()
    with pytest.raises(relprop.InvalidInput, match=r"no rule for aten\.gelu"):
        relprop.explain(
            smooth, torch.randn(1, 3), 0, method="pattern_net", patterns=Patterns(torch.randn(9, 3))
        )
    with pytest.raises(relprop.InvalidInput, match="no training inputs"):
        Patterns(torch.zeros(1, 3))
    with pytest.raises(relprop.InvalidInput, match="estimator"):
        Patterns(torch.zeros(4, 3), "both")  # type: ignore[arg-type]


def test_grad_cam_needs_places() -> None:
    table = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with pytest.raises(relprop.InvalidInput, match="grad_cam"):
        relprop.explain(table, torch.randn(1, 3), method="grad_cam")


def test_without_captum_the_install_command_is_named(
    model: Small, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(relprop.MissingExtra, match=r"pip install 'relprop\[methods\]'"):
        relprop.explain(model, x, TARGET, method="occlusion")


class Bagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 4, mode="sum"), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "occlusion"])
def test_a_bag_of_embeddings_has_no_derivative_by_single_tokens(method: str) -> None:
    with pytest.raises(relprop.InvalidInput, match=r"a bag of them is none\)\n  do: .*method='lrp'"):
        relprop.explain(Bagged().eval(), torch.tensor([[1, 2, 3]]), 0, method=method)
