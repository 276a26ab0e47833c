"""Fitted estimators as what `relprop.explain` explains."""

from relprop.classical.explained.estimator import CHECKED, RULES, Estimator, listed_once, rewritten
from relprop.classical.explained.inputs import Given

__all__ = ["CHECKED", "RULES", "Estimator", "Given", "listed_once", "rewritten"]
