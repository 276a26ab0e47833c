"""Models of the transformers library: explained as they are called, and equal to the papers' propositions.

The twins are written from the propositions, not through the engine: gradient times input of a model whose statistics
and activations' factors are constants, and whose products count half (Achtibat et al. 2024, Prop. 3.1 to 3.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop.engine.rules import Addition, Attention, Epsilon, Product, Softmax

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.utils.logging.set_verbosity(50)

pytestmark = [
    pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning"),  # random weights
    pytest.mark.filterwarnings("ignore:.*falling back to its reference.*"),
]

VOCABULARY, TOKENS = 64, 7
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def large(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights as large as those of a trained one."""
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
        elif bool((weight == 0).all()):
            nn.init.normal_(weight, std=0.1)
    return model.eval()


def tokens(padded: str = "") -> dict[str, Tensor]:
    """Two samples; the second has two tokens fewer, padded on that side."""
    torch.manual_seed(1)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    if padded:
        mask[1, slice(0, 2) if padded == "left" else slice(-2, None)] = 0
    return {"input_ids": torch.randint(3, VOCABULARY, (2, TOKENS)), "attention_mask": mask}


# ---------------------------------------------------------------- the propositions, by autograd


def constant_factor(x: Tensor, y: Tensor) -> Tensor:
    """y, as x times a constant: the identity rule for activations and norms (Eq. 9, Prop. 3.4)."""
    return x * (y / x).detach()


def half_product(a: Tensor, b: Tensor) -> Tensor:
    """a · b, each factor with half of the gradient (Prop. 3.2)."""
    return (a * b.detach() + a.detach() * b) / 2


def half_matmul(a: Tensor, b: Tensor) -> Tensor:
    """A B, each factor with half of the gradient (Prop. 3.3)."""
    return (a @ b.detach() + a.detach() @ b) / 2


def gate_constant(a: Tensor, b: Tensor) -> Tensor:
    """a · b with the gate a a constant (Ali et al. 2022)."""
    return a.detach() * b


def weights_constant(p: Tensor, v: Tensor) -> Tensor:
    """P V with P constant (Ali et al. 2022)."""
    return p.detach() @ v


def gradient_x_input(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return x * gradient


def llama_twin(model: Any, embedded: Tensor, product: Any, mix: Any) -> Tensor:
    """The logits (B, T, vocabulary) of a Llama, from its weights."""
    config = model.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    count = embedded.shape[1]
    base = config.rope_parameters["rope_theta"]
    speeds = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.cat([torch.arange(count)[:, None] * speeds] * 2, -1)

    def rotate(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def normed(layer: Any, x: Tensor) -> Tensor:
        y = layer.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + layer.variance_epsilon)
        return constant_factor(x, y)

    def split(x: Tensor, n: int) -> Tensor:
        return x.unflatten(-1, (n, size)).transpose(1, 2)

    x = embedded
    for layer in model.model.layers:
        at = layer.self_attn
        h = normed(layer.input_layernorm, x)
        q, k, v = split(at.q_proj(h), heads), split(at.k_proj(h), groups), split(at.v_proj(h), groups)
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
        scores = half_matmul(q, k.mT) * size**-0.5
        later = torch.ones(count, count, dtype=torch.bool).triu(1)
        x = x + at.o_proj(
            mix(scores.masked_fill(later, -torch.inf).softmax(-1), v).transpose(1, 2).flatten(2)
        )
        h = normed(layer.post_attention_layernorm, x)
        gate = layer.mlp.gate_proj(h)
        x = x + layer.mlp.down_proj(product(constant_factor(gate, F.silu(gate)), layer.mlp.up_proj(h)))
    return model.lm_head(normed(model.model.norm, x))


def exact(name: str) -> relprop.Composite:
    """The preset without stabilisers."""
    half = name == "attn_lrp"
    how, softmax = ("half", "taylor") if half else ("signal", "constant")
    attention = Attention(how, softmax, epsilon=0.0, activated=not half)
    return relprop.Composite(
        [
            ("weighted", Epsilon(0.0)),
            ("softmax", Softmax(softmax)),
            ("product", attention),
            ("product", Product("half", 0.0) if half else Product("signal", 0.0, activated=True)),
            ("addition", Addition(epsilon=0.0)),
            ("pool", Epsilon(0.0)),
        ]
    )


ROUNDED = 1e-5
"""Llama's code computes its norms, its rotations and, written out, its softmax in float32 whatever the weights' type."""

TWINS = {"attn_lrp": (half_product, half_matmul), "cp_lrp": (gate_constant, weights_constant)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("preset", TWINS)
def test_llama_equals_the_propositions(preset: str, attention: str) -> None:
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=24, num_key_value_heads=2, attn_implementation=attention
    )
    model = large(transformers.LlamaForCausalLM(config)).double()
    inputs = tokens()
    embedded = model.model.embed_tokens(inputs["input_ids"]).detach()
    twin = gradient_x_input(lambda e: llama_twin(model, e, *TWINS[preset])[:, -2, 9], embedded).sum(-1)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(
            llama_twin(model, embedded, *TWINS[preset]), expected, rtol=ROUNDED, atol=ROUNDED
        )
    close = relprop.explain(model, inputs, (-2, 9), exact(preset)).relevance["input_ids"]
    assert float((close - twin).norm() / twin.norm()) <= ROUNDED
    found = relprop.explain(model, inputs, (-2, 9), preset).relevance["input_ids"]
    assert float((found - twin).norm() / twin.norm()) <= 1e-4


def vit_twin(model: Any, images: Tensor, product: Any, mix: Any) -> Tensor:
    """The logits (B, classes) of torchvision's VisionTransformer, from its weights."""
    heads = model.encoder.layers[0].num_heads

    def normed(layer: Any, x: Tensor) -> Tensor:
        return constant_factor(x, layer(x))

    x = model.conv_proj(images).flatten(2).mT
    x = torch.cat([model.class_token.expand(len(x), -1, -1), x], 1) + model.encoder.pos_embedding
    for block in model.encoder.layers:
        at = block.self_attention
        q, k, v = (
            t.unflatten(-1, (heads, -1)).transpose(1, 2)
            for t in F.linear(normed(block.ln_1, x), at.in_proj_weight, at.in_proj_bias).chunk(3, -1)
        )
        scores = half_matmul(q, k.mT) * q.shape[-1] ** -0.5
        x = x + at.out_proj(mix(scores.softmax(-1), v).transpose(1, 2).flatten(2))
        h = block.mlp[0](normed(block.ln_2, x))
        x = x + block.mlp[3](constant_factor(h, F.gelu(h)))
    return model.heads(normed(model.encoder.ln, x)[:, 0])


@pytest.mark.parametrize("preset", TWINS)
def test_vision_transformer_equals_the_propositions(preset: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model = models.VisionTransformer(16, 8, 2, 4, 16, 24, num_classes=5).double()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.6)
    model.eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    twin = gradient_x_input(lambda x: vit_twin(model, x, *TWINS[preset])[:, 3], images)
    with torch.no_grad():
        torch.testing.assert_close(
            vit_twin(model, images, *TWINS[preset]), model(images), rtol=1e-9, atol=1e-9
        )
    close = relprop.explain(model, images, 3, exact(preset)).relevance
    torch.testing.assert_close(close, twin, rtol=1e-8, atol=1e-8 * float(twin.abs().max()))
    found = relprop.explain(model, images, 3, preset).relevance
    assert float((found - twin).norm() / twin.norm()) <= 1e-4


# ---------------------------------------------------------------- what families brought to light


class Pieces(transformers.utils.ModelOutput):
    """An output whose only field is a tuple of tensors, as backbones have it."""


@dataclass
class Maps(Pieces):
    maps: tuple[Tensor, ...] | None = None


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Maps:
        return Maps(maps=(self.embed(x),))


class ByLength(Backbone):
    """Control flow that only a concrete trace follows."""

    def forward(self, x: Tensor) -> Maps:
        return super().forward(x if float(x.sum()) > 1e9 else 2 * x)


@pytest.mark.parametrize("kind", [Backbone, ByLength])
def test_output_that_holds_one_tuple_is_kept_whole(kind: type[Backbone]) -> None:
    model = kind().double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    explanation = relprop.explain(model, x, lambda y: y.maps[0][:, 1])
    assert explanation.audit is not None and explanation.audit.closes
    assert tuple(explanation.output.maps[0].shape) == (2, 4)


def test_window_attention_hides_by_sums_of_infinities() -> None:
    """Longformer adds a mask, cast to the queries' type, to scores that have −∞ outside of the sequence."""
    config = transformers.LongformerConfig(
        **SMALL, **IDS, attention_window=4, intermediate_size=24, max_position_embeddings=32
    )
    model = large(transformers.LongformerForSequenceClassification(config)).double()
    inputs = tokens("right")
    explanation = relprop.explain(model, inputs, 1)
    assert explanation.audit is not None and explanation.audit.closes
    assert bool((explanation.relevance["input_ids"][inputs["attention_mask"] == 0] == 0).all())


class Unused(nn.Module):
    """MobileBERT has a matrix of 0 rows where its embedding is as wide as the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.empty = nn.Parameter(torch.zeros(0, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.cat([self.empty, self.empty]).sum()


def test_parameter_without_values_is_no_obstacle() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    explanation = relprop.explain(Unused().double().eval(), x, 0)
    assert explanation.audit is not None and explanation.audit.closes
