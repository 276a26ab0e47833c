"""Every exception that relprop raises. Each message says what, where and what to do."""

from __future__ import annotations


class RelpropError(Exception):
    """Base of all errors of relprop."""


class UnsupportedOperation(RelpropError):
    """The captured model has an operation that no relevance rule covers; raised before anything is computed."""


class InvalidInput(RelpropError, ValueError):
    """An argument is of the wrong shape, type or range, holds NaN or infinity, or the model is in training mode."""


class CaptureError(RelpropError):
    """The model cannot be turned into a graph of operations; the message carries the cause in plain words."""


class ConservationError(RelpropError):
    """The audit does not close: a defect, reported with the operation at fault."""


class MissingExtra(RelpropError, ImportError):
    """A package of an optional extra is missing; the message names the install command."""


class RelevanceWarning(UserWarning):
    """The explanation is exact, but worth a second look (relevance was blown up on the way, a rule matched nothing)."""


class UnsupportedEstimator(UnsupportedOperation, InvalidInput):
    """A classical model or a step of its pipeline that has no rewriting as a network; nothing is computed."""
