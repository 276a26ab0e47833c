"""Recurrent layers and cells, each one operation: LSTM, GRU and Elman networks of any depth and direction."""

from relprop.engine.ops.recurrent import joint, layers

__all__ = ["joint", "layers"]
