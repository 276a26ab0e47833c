"""What is evaluated: data, methods, and the work that the metrics of one batch share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given
from relprop.evaluate.axioms import Explained
from relprop.evaluate.imputation import noise_for
from relprop.evaluate.perturb import Curves, Experiment, arranged, explained
from relprop.evaluate.scoring import Scorer, scorer_of
from relprop.evaluate.stability import Explain, distances, neighbours
from relprop.evaluate.subsets import drops, random_subsets
from relprop.explain import Explainer
from relprop.explain.batches import slice_target
from relprop.targets import Target


@dataclass(frozen=True, slots=True)
class Data:
    """Samples to evaluate on.

    Attributes:
        inputs: as for `relprop.explain`, the batch first.
        target: what is explained; None for each sample's largest output.
        mask: true where the explained object is, (B, H, W) or (B, 1, H, W); of `focus` the tiles (B, 4).
        bounds: the range of valid inputs, (low, high).
        samples: their numbers, which seed all draws; by default 0, 1, ….
    """

    inputs: Any
    target: Target = None
    mask: Tensor | None = None
    bounds: Any = None
    samples: tuple[int, ...] = ()

    def __len__(self) -> int:
        return next(len(leaf) for leaf in pytree.tree_leaves(self.inputs) if isinstance(leaf, Tensor))

    def part(self, start: int, stop: int) -> Data:
        """The samples from start to stop."""
        count = len(self)

        def cut(leaf: Any) -> Any:
            return (
                leaf[start:stop] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == count else leaf
            )

        return Data(
            pytree.tree_map(cut, self.inputs),
            slice_target(self.target, count, start, stop, 2),
            None if self.mask is None else self.mask[start:stop],
            self.bounds,
            (self.samples or tuple(range(count)))[start:stop],
        )


@dataclass(frozen=True, slots=True)
class Method:
    """A method to evaluate: its name, and how it explains a model, inputs and a target.

    `spec` says what it is, for the record and for resuming. `chance`: it is noise, which is drawn for each sample by its number,
    so that batches do not matter.
    """

    name: str
    explain: Explain = field(repr=False)
    spec: str = ""
    chance: bool = False


def methods_of(methods: Sequence[Any] | Mapping[str, Any]) -> list[Method]:
    """The methods that are meant, by name.

    Args:
        methods: names of `relprop.methods()`, or "lrp:PRESET" for LRP with a preset's rules; or a mapping from a name of your
            own to such a name, to a dict of an `Explainer`'s arguments (rules, method, its options), or to a callable of
            (model, inputs, target) that returns relevance.
    """
    named: Mapping[str, Any] = methods if isinstance(methods, Mapping) else {str(one): one for one in methods}
    if not named:
        raise InvalidInput(
            "methods: none given\n  do: give names such as 'lrp', 'gradient_x_input', 'random'"
        )
    return [_method(name, value) for name, value in named.items()]


def _method(name: str, value: Any) -> Method:
    if callable(value) and not isinstance(value, str):
        return Method(name, value, f"callable {getattr(value, '__qualname__', type(value).__name__)}")
    if isinstance(value, str):
        kind, _, rules = value.partition(":")
        value = {"method": kind} | ({"rules": rules} if rules else {})
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f"methods: {name!r} is {value!r}\n  do: a name, a dict of an Explainer's arguments, or a callable"
        )
    options = dict(value)
    held: dict[int, tuple[Any, Explainer]] = {}

    def explain(model: Any, inputs: Any, target: Any) -> Any:
        if id(model) not in held:
            held.clear()  # the last model is kept alive, so that its id stays its own
            held[id(model)] = (model, Explainer(model, **options))
        return held[id(model)][1](inputs, target).relevance

    spec = repr(sorted(options.items(), key=lambda item: item[0]))
    return Method(name, explain, spec, options.get("method") == "random")


@dataclass(frozen=True, slots=True)
class Batch:
    """What the metrics of all methods share for one batch: scores, experiments, subsets and what they cost.

    `perturbation`: options of every experiment, such as regions, replacement, steps.
    """

    model: Any
    data: Data
    perturbation: Mapping[str, Any]
    seed: int
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def samples(self) -> tuple[int, ...]:
        """The samples' numbers."""
        return self.data.samples or tuple(range(len(self.data)))

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under this key before, or is made now."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def scorer(self, score: str = "logit", at: int | str | None = None) -> Scorer:
        """The scores of the unchanged inputs; one forward pass."""

        def make() -> Scorer:
            return scorer_of(self.model, self.data.inputs, self.data.target, score, at)

        found: Scorer = self.remember(("scorer", score, at), make)
        return found

    def experiment(self, **options: Any) -> Experiment:
        """The experiment of these options, over those that all of them have."""
        settings = {"bounds": self.data.bounds, "seed": self.seed, **self.perturbation, **options}
        scorer = self.scorer(settings.pop("score", "logit"), settings.pop("at", None))
        key = ("experiment", scorer.kind, scorer.at, _key(settings))
        found: Experiment = self.remember(key, lambda: arranged(scorer, samples=self.samples, **settings))
        return found

    def subsets(self, experiment: Experiment, size: int, count: int) -> tuple[Tensor, Tensor]:
        """Random subsets of regions, and what the score loses without them; the same for every method."""

        def make() -> tuple[Tensor, Tensor]:
            masks = random_subsets(self.samples, experiment.regions.count, size, count, self.seed)
            return masks, drops(experiment, masks)

        found: tuple[Tensor, Tensor] = self.remember(("subsets", id(experiment), size, count), make)
        return found


def _key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Settings as something that can be compared: tensors and callables by identity."""
    return tuple(
        (name, value if isinstance(value, (str, int, float, type(None))) else repr(value) if isinstance(value, (tuple, list)) else id(value))
        for name, value in sorted(settings.items())
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One method's explanation of one batch: what a metric is computed from.

    `notes`: by metric why some of its values are undefined, and where.
    """

    batch: Batch
    method: Method
    relevance: Tensor
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)
    notes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def mask(self) -> Tensor:
        """Where the explained object is. Raises `InvalidInput` where the data has no masks."""
        if self.batch.data.mask is None:
            raise InvalidInput(
                "mask: this metric needs to know where the object is, and the data has no masks\n  do: give Data(inputs, mask=…)"
            )
        return self.batch.data.mask

    @property
    def explained(self) -> Explained:
        """For checks and metrics that explain anew."""
        return Explained(
            self.method.explain, self.batch.model, self.batch.scorer(), self.relevance, self.batch.samples
        )

    def curve(
        self, order: str = "morf", reveal: bool = False, absolute: bool = False, **options: Any
    ) -> Curves:
        """The curve of an order; computed once, whatever asks for it."""
        experiment = self.batch.experiment(**options)
        key = ("curve", id(experiment), order, reveal, absolute)
        if key not in self.kept:
            self.kept[key] = experiment.curve(
                self.relevance, order, reveal=reveal, absolute=absolute, constant="nan"
            )
        found: Curves = self.kept[key]
        return found

    def distances(self, samples: int, radius: float, kind: str) -> tuple[Tensor, Tensor]:
        """How far relevance and input move for close copies; computed once a kind."""
        key = ("distances", samples, radius, kind)
        if key not in self.kept:
            scorer = self.batch.scorer()
            copies = neighbours(scorer.inputs, self.batch.samples, samples, radius, kind, self.batch.seed)
            self.kept[key] = distances(self.method.explain, self.batch.model, scorer, self.relevance, copies)
        found: tuple[Tensor, Tensor] = self.kept[key]
        return found


def case_of(batch: Batch, method: Method) -> Case:
    """One method's explanation of a batch. Raises `InvalidInput` for relevance that is not finite or of another shape."""
    scorer = batch.scorer()
    target = (
        scorer.target
        if isinstance(scorer.target, Tensor) and getattr(scorer.output, "ndim", 2) > 1
        else batch.data.target
    )
    if method.chance:
        drawn = noise_for(batch.samples, scorer.inputs.shape[1:], batch.seed)
        return Case(batch, method, drawn.to(scorer.inputs.device))
    relevance = explained(method.explain(batch.model, batch.data.inputs, target), scorer)
    if len(relevance) != len(batch.data):
        raise InvalidInput(
            f"methods: {method.name} gave {len(relevance)} maps for {len(batch.data)} samples\n  do: give one a sample"
        )
    return Case(batch, method, given(relevance).to(scorer.inputs.device))
