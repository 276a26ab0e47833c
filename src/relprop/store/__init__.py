"""The store: explanations of a whole data set as a Zarr v3 group, an array a column, samples first.

A store is written in blocks of samples, each of which is there as a whole or not at all, and read lazily. Needs zarr:
`pip install 'relprop[run]'`. The columns are in docs/datasets.md.
"""

from relprop.store.arrays import write_store
from relprop.store.group import CHUNK, SHARD, is_store
from relprop.store.read import Column, Store, open
from relprop.store.schema import AXES, DONE, FAILED, KINDS, PENDING, SCHEMA, SPECS, Spec, axes_of, spec_of
from relprop.store.write import Writer, create, reopen, stored, writing

__all__ = [
    "AXES",
    "CHUNK",
    "DONE",
    "FAILED",
    "KINDS",
    "PENDING",
    "SCHEMA",
    "SHARD",
    "SPECS",
    "Column",
    "Spec",
    "Store",
    "Writer",
    "axes_of",
    "create",
    "is_store",
    "open",
    "reopen",
    "spec_of",
    "stored",
    "write_store",
    "writing",
]
