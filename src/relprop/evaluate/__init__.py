"""Evaluating explanations: perturbation, axioms, randomisation, localisation; on arrays, on a model, or methods side by side."""

from relprop.evaluate.arrays import POOLS, pool_channels
from relprop.evaluate.axioms import AXIOMS, Checked, Explained, conservation_gap
from relprop.evaluate.cases import Data
from relprop.evaluate.compare import compare
from relprop.evaluate.comparison import Comparison
from relprop.evaluate.complexity import effective_complexity, entropy, gini
from relprop.evaluate.curves import abpc, aopc, auc, naopc, normalised
from relprop.evaluate.imputation import impute_noisy_linear
from relprop.evaluate.localisation import (
    average_precision,
    context_ratio,
    focus,
    inside_share,
    pointing_game,
    relevance_mass,
    relevance_rank,
    roc_auc,
    top_k,
)
from relprop.evaluate.perturb import Curves, Experiment, experiment, perturb
from relprop.evaluate.protocols import PROTOCOLS
from relprop.evaluate.regions import ORDERS, superpixels
from relprop.evaluate.replacements import REPLACEMENTS
from relprop.evaluate.scoring import SCORES
from relprop.evaluate.similarity import SIMILARITIES, cosine, kendall, pearson, spearman, spearman_abs, ssim
from relprop.evaluate.table import METRICS, Metric

__all__ = [
    "AXIOMS",
    "METRICS",
    "ORDERS",
    "POOLS",
    "PROTOCOLS",
    "REPLACEMENTS",
    "SCORES",
    "SIMILARITIES",
    "Checked",
    "Comparison",
    "Curves",
    "Data",
    "Experiment",
    "Explained",
    "Metric",
    "abpc",
    "aopc",
    "auc",
    "average_precision",
    "compare",
    "conservation_gap",
    "context_ratio",
    "cosine",
    "effective_complexity",
    "entropy",
    "experiment",
    "focus",
    "gini",
    "impute_noisy_linear",
    "inside_share",
    "kendall",
    "naopc",
    "normalised",
    "pearson",
    "perturb",
    "pointing_game",
    "pool_channels",
    "relevance_mass",
    "relevance_rank",
    "roc_auc",
    "spearman",
    "spearman_abs",
    "ssim",
    "superpixels",
    "top_k",
]
