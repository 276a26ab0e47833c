"""Images for scikit-learn's pipelines: transformers that encode their local descriptors, and that relprop explains.

    make_pipeline(FisherVectors(), LinearSVC()).fit(images, labels)

Images are grey, (B, H, W), all of one size. scikit-learn is imported with this module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from relprop.classical.build import Place, tensor, transformer
from relprop.classical.local import Descriptors, Fisher, Pooled, Projected, Words, grid, regions
from relprop.classical.steps import Chain, Elementwise, Unit
from relprop.errors import InvalidInput, MissingExtra

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
except ImportError as _error:
    raise MissingExtra(
        "relprop.classical.images needs scikit-learn\n  do: pip install 'relprop[classical]'"
    ) from _error

BLOCK = 64
"""Images that are encoded at a time."""


class _Encoding(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both encodings share: descriptors, their projection, pooling over a pyramid."""

    cells: tuple[int, ...]
    step: int
    dimensions: int
    samples: int
    pyramid: tuple[tuple[int, int], ...]
    random_state: int

    def fit(self, images: Any, labels: Any = None) -> Any:
        """Learn the projection and the vocabulary from descriptors of the images (B, H, W)."""
        images = _images(images)
        self.image_shape_ = images.shape[1:]
        for cell in self.cells:
            if min(grid(self.image_shape_, cell, self.step)) < 1:
                raise InvalidInput(
                    f"{type(self).__name__}: images of {self.image_shape_} hold no window of {4 * cell} pixels\n"
                    "  do: use smaller cells"
                )
        rng = np.random.default_rng(self.random_state)
        found = self._sampled(images, rng)
        self.projection_ = PCA(self.dimensions, random_state=self.random_state).fit(found)
        self._learn(self.projection_.transform(found))
        return self

    def _sampled(self, images: Any, rng: np.random.Generator) -> Any:
        """Descriptors from places drawn at random."""
        step = Descriptors(tuple(self.cells), self.step)
        few = max(1, int(np.ceil(self.samples / len(images))))
        parts = []
        for start in range(0, len(images), BLOCK):
            found = step(torch.from_numpy(images[start : start + BLOCK])).numpy()
            parts += [one[rng.permutation(len(one))[:few]] for one in found]
        every = np.concatenate(parts)
        return every[rng.permutation(len(every))[: self.samples]]

    def transform(self, images: Any) -> Any:
        """Encode images (B, H, W) as vectors (B, D)."""
        images = _images(images)
        place = Place(0)
        _encoded(self, place)
        chain = Chain(place.steps)
        with torch.no_grad():
            parts = [chain(torch.from_numpy(images[i : i + BLOCK])) for i in range(0, len(images), BLOCK)]
        return torch.cat(parts).numpy()


class FisherVectors(_Encoding):
    """Improved Fisher vectors of dense descriptors (Perronnin et al. 2010): root and length normalisation.

    Args:
        components: of the mixture of Gaussians.
        cells: sizes of a descriptor's cells in pixels; a descriptor covers 4 × 4 of them.
        step: pixels between descriptors.
        dimensions: of the descriptors after their projection.
        pyramid: levels of the spatial pyramid as (rows, columns).
        samples: descriptors that the mixture is fitted on.
    """

    def __init__(
        self,
        components: int = 16,
        cells: tuple[int, ...] = (2, 3),
        step: int = 2,
        dimensions: int = 24,
        pyramid: tuple[tuple[int, int], ...] = ((1, 1),),
        samples: int = 20_000,
        random_state: int = 0,
    ) -> None:
        self.components, self.cells, self.step, self.dimensions = components, cells, step, dimensions
        self.pyramid, self.samples, self.random_state = pyramid, samples, random_state

    def _learn(self, descriptors: Any) -> None:
        self.mixture_ = GaussianMixture(
            self.components, covariance_type="diag", reg_covar=1e-4, max_iter=50, tol=1e-2,
            init_params="k-means++", random_state=self.random_state,
        )  # fmt: skip
        self.mixture_.fit(descriptors)

    def _vocabulary(self) -> Any:
        m = self.mixture_
        return Fisher(
            shares=tensor(m.weights_), means=tensor(m.means_), deviations=tensor(m.covariances_).sqrt()
        ), (Elementwise("signed_root"), Unit("l2"))


class VisualWords(_Encoding):
    """Histograms of visual words, of dense descriptors.

    Args:
        words: how many.
        sharpness: how much the nearest word is preferred: softmax of −s d² with s = sharpness / mean d²; None: it alone.
        others: as for `FisherVectors`.
    """

    def __init__(
        self,
        words: int = 128,
        sharpness: float | None = None,
        cells: tuple[int, ...] = (2, 3),
        step: int = 2,
        dimensions: int = 24,
        pyramid: tuple[tuple[int, int], ...] = ((1, 1),),
        samples: int = 20_000,
        random_state: int = 0,
    ) -> None:
        self.words, self.sharpness, self.cells, self.step = words, sharpness, cells, step
        self.dimensions, self.pyramid, self.samples = dimensions, pyramid, samples
        self.random_state = random_state

    def _learn(self, descriptors: Any) -> None:
        found = MiniBatchKMeans(self.words, n_init=1, random_state=self.random_state).fit(descriptors)
        self.words_ = found.cluster_centers_
        distance = float(np.min(found.transform(descriptors[:1000]), 1).mean() ** 2)
        self.sharpness_ = float("inf") if self.sharpness is None else self.sharpness / distance

    def _vocabulary(self) -> Any:
        return Words(tensor(self.words_), self.sharpness_), ()


@transformer("FisherVectors", "VisualWords")
def _encoded(fitted: Any, place: Place) -> None:
    """Descriptors, their projection, the vocabulary, pooling over the pyramid, normalisation."""
    vocabulary, after = fitted._vocabulary()
    pca = fitted.projection_
    place.then(Descriptors(tuple(fitted.cells), fitted.step))
    place.then(Projected(mean=tensor(pca.mean_), weight=tensor(pca.components_)))
    place.then(vocabulary)
    where = regions(fitted.image_shape_, tuple(fitted.cells), fitted.step, tuple(fitted.pyramid))
    where = where[where.sum(1) > 0]
    size = fitted.words if isinstance(vocabulary, Words) else 2 * vocabulary.means.numel()
    place.then(Pooled(regions=where), len(where) * size)
    for step in after:
        place.then(step)


def _images(images: Any) -> Any:
    """Grey images (B, H, W) in float64."""
    found = np.asarray(images, dtype=np.float64)
    if found.ndim != 3 or not found.size or not np.isfinite(found).all():
        raise InvalidInput(
            f"images: of shape {found.shape}, not finite grey images (samples, height, width)\n"
            "  do: images.mean(-1) for colours, and one size for all"
        )
    return found
