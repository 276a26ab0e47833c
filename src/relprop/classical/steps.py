"""The small modules that a classical model becomes: a chain of `Step`s from features to scores, in float64.

Values between steps are counted from the reference, so that relevance is that of the differences; see `build`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relprop.classical import operations  # noqa: F401 (adds the operations to the table)

ops = torch.ops.relprop


class Step(nn.Module):
    """One step: values (B, D) to values (B, D').

    `nonzero(values, columns)` is the same for rows of which only some columns are listed, both (B, K), the others being
    zero, where a step makes zeros of zeros. Unused places of a row have the value 0 and the column 0. A linear step ends
    the list: it returns all its values, and None for the columns.
    """

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """The step on listed values."""
        raise NotImplementedError


def lists_nonzeros(steps: Iterable[nn.Module], ends: bool = True) -> bool:
    """Whether steps work on rows of listed values, up to the first linear one where the list may end there."""
    for step in steps:
        if isinstance(step, Affine):
            return ends
        if isinstance(step, Branches):
            if not all(
                isinstance(chain, Chain) and lists_nonzeros(chain.steps, False) for chain in step.steps
            ):
                return False
        elif not isinstance(step, Step) or type(step).nonzero is Step.nonzero:
            return False
    return True


class Constants(Step):
    """A step with constants: tensors that become buffers."""

    def __init__(self, **values: Tensor | None) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value)


class Centre(Constants):
    """x − r: what is explained from here on is the difference from the reference r (D,)."""

    reference: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return ops.centre(x, self.reference)  # type: ignore[no-any-return]


class Shift(Constants):
    """δ + r: values themselves again. The reference's share goes to the bias."""

    reference: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return x + self.reference


class Scale(Constants):
    """x · s."""

    factor: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return x * self.factor

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) to (B, K)."""
        return values * self.factor[columns], columns


class Elementwise(Step):
    """A function of single values (identity): one of `operations.FUNCTIONS`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return ops.elementwise(x, self.name)  # type: ignore[no-any-return]


class Activation(Step):
    """The activation of a perceptron's layer: "relu", "tanh" or "logistic"."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid}[name]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return self.function(x)


class Keeping(Elementwise):
    """A function of single values that makes zeros of zeros."""

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) to (B, K)."""
        return self(values), columns


class Unit(Step):
    """Rows at length 1 by the norm "l1", "l2" or "max"; the length counts as a constant."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return ops.unit_rows(x, self.norm)  # type: ignore[no-any-return]

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) to (B, K)."""
        return self(values), columns


class Select(Constants):
    """Some of the columns, by their numbers."""

    index: Tensor
    places: Tensor  # of each old column its new number, −1 where it is gone

    def __init__(self, index: Tensor, width: int) -> None:
        places = torch.full((width,), -1)
        places[index] = torch.arange(len(index))
        super().__init__(index=index, places=places)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D')."""
        return x.index_select(1, self.index)

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) to (B, K): values of columns that are gone become 0."""
        found = self.places[columns]
        return values.masked_fill(found < 0, 0.0), found.clamp(min=0)


class Affine(Constants):
    """x Wᵀ + b, W (C, D): classical linear steps, whose rule is LRP-0."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        return F.linear(x, self.weight, self.bias)

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, None]:
        """(B, K) to (B, C)."""
        picked = self.weight.t()[columns]
        scores = torch.einsum("bk,bkc->bc", values, picked)
        return scores if self.bias is None else scores + self.bias, None


class Dense(Affine):
    """A layer of a neural network, whose rule is that of the composite."""


class Machine(Constants):
    """f_k = Σ_j c_kj k(x, u_j) + b_k, by a kernel's name in `kernels.KERNELS`."""

    support: Tensor
    coefficients: Tensor
    bias: Tensor | None
    reference: Tensor
    coef0: Tensor

    def __init__(self, kernel: str, gamma: float, degree: int, **constants: Tensor | None) -> None:
        super().__init__(**constants)
        self.kernel, self.gamma, self.degree = kernel, gamma, degree

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        return ops.kernel_machine(  # type: ignore[no-any-return]
            x, self.support, self.coefficients, self.bias, self.reference,
            self.kernel, self.gamma, self.coef0, self.degree,
        )  # fmt: skip


class Distances(Constants):
    """Distances to centres (K, D), in proportion to their terms; `root`: of squared ones the square root."""

    centres: Tensor
    precision: Tensor | None

    def __init__(
        self, centres: Tensor, precision: Tensor | None = None, power: int = 2, root: bool = False
    ) -> None:
        super().__init__(centres=centres, precision=precision)
        self.power, self.root = power, root

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, K)."""
        d: Tensor = ops.distances(x, self.centres, self.precision, self.power)
        return d.sqrt() if self.root else d


class Soften(Constants):
    """−β⁻¹ log Σ_k exp(−β h_k), h = d − offset: R_k = softmin(β h)_k R; the offsets are not split off."""

    offset: Tensor | None

    def __init__(self, beta: float, offset: Tensor | None = None) -> None:
        super().__init__(offset=offset)
        self.beta = beta

    def forward(self, d: Tensor) -> Tensor:
        """(B, K) to (B,)."""
        h = d if self.offset is None else ops.centre(d, self.offset)
        return -torch.logsumexp(-self.beta * h, 1) / self.beta


class Margins(Constants):
    """By how much each cluster's centre is nearer than the nearest of its rivals: (B, K) to (B, C)."""

    own: Tensor
    other: Tensor

    def __init__(self, own: Tensor, other: Tensor, beta: float = 0.0, soft: bool = False) -> None:
        super().__init__(own=own, other=other)
        self.beta, self.soft = beta, soft

    def forward(self, d: Tensor) -> Tensor:
        """(B, K) to (B, C)."""
        return ops.margins(d, self.own, self.other, self.beta, self.soft)  # type: ignore[no-any-return]


class Grouped(Step):
    """One module for each group of columns: distances to the points of each cluster become one distance a cluster."""

    def __init__(self, steps: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.sizes = list(sizes)

    def forward(self, d: Tensor) -> Tensor:
        """(B, ΣK) to (B, C)."""
        parts = torch.split(d, self.sizes, 1)
        return torch.stack([step(part) for step, part in zip(self.steps, parts, strict=True)], 1)


class Duels(Constants):
    """One-versus-one scores (B, P) to one score a class (B, C): duels won, and the sum of all margins squashed.

    score_c = Σ_k [f_ck > 0] + t / (3 (|t| + 1)), t = Σ_k f_ck: a duel that is won hands its vote's relevance to its f.
    """

    signs: Tensor  # (C, P): 1 where the class is the first of the pair, −1 where it is the second

    def forward(self, f: Tensor) -> Tensor:
        """(B, P) to (B, C)."""
        turned = f.unsqueeze(1) * self.signs
        votes = torch.relu(torch.sign(turned)).sum(-1)
        total = turned.sum(-1)
        return votes + ops.elementwise(total, "squashed")  # type: ignore[no-any-return]


class Monomials(Constants):
    """Products of powers of the columns."""

    powers: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, K)."""
        return ops.monomials(x, self.powers)  # type: ignore[no-any-return]


class OneHot(Constants):
    """1 for each column's category, 0 for its others."""

    column: Tensor
    category: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, M)."""
        return ops.one_hot(x, self.column, self.category)  # type: ignore[no-any-return]


class Flatten(Step):
    """(B, 1) to (B,): models with one score."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1) to (B,)."""
        return x.squeeze(1)


class Chain(Step):
    """Steps one after the other."""

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to what the last step gives."""
        for step in self.steps:
            x = step(x)
        return x

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, K) to what the last step gives."""
        listed: Tensor | None = columns
        for step in self.steps:
            assert isinstance(step, Step)
            values, listed = (step(values), None) if listed is None else step.nonzero(values, listed)
        return values, listed


class Branches(Constants):
    """Several chains side by side, each on its own columns; their values one after the other."""

    def __init__(self, branches: Sequence[tuple[Tensor, Chain, int]], width: int) -> None:
        """`branches`: the columns that each takes, its chain, and the width of what the chain gives."""
        super().__init__()
        self.steps = nn.ModuleList(chain for _, chain, _ in branches)
        self.picks = nn.ModuleList(Select(columns, width) for columns, _, _ in branches)
        self.widths = [wide for _, _, wide in branches]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, ΣD')."""
        return torch.cat([step(pick(x)) for pick, step in zip(self.picks, self.steps, strict=True)], 1)

    def nonzero(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) to (B, K · branches)."""
        found, start = [], 0
        for pick, step, wide in zip(self.picks, self.steps, self.widths, strict=True):
            assert isinstance(pick, Select) and isinstance(step, Chain)
            own, where = step.nonzero(*pick.nonzero(values, columns))
            assert where is not None
            found.append((own, torch.where(own == 0, 0, where + start)))
            start += wide
        return torch.cat([own for own, _ in found], 1), torch.cat([where for _, where in found], 1)


class Network(nn.Module):
    """A classical model as a network: features (B, D) in float64 to scores (B,) or (B, C).

    Rows may also be given by their nonzero values (B, K) and the columns of these (B, K), where every step makes zeros
    of zeros (`sparse`); relevance is then that of the listed values.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.sparse = lists_nonzeros(chain.steps)
        self.eval()

    def forward(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """The scores."""
        return self.chain(x) if columns is None else self.chain.nonzero(x, columns)[0]
