"""Stores and analyses for other software: ViRelAy's and CoRelAy's files written and read, clusters as tables.

h5py and PyYAML are imported when they are used: `pip install 'relprop[exchange]'`.
"""

from relprop.exchange.corelay import Cached, read_corelay
from relprop.exchange.layout import Category, Project
from relprop.exchange.stored import export_virelay, import_virelay
from relprop.exchange.tables import save_table, strategy_rows
from relprop.exchange.virelay import read_virelay, write_virelay

__all__ = [
    "Cached",
    "Category",
    "Project",
    "export_virelay",
    "import_virelay",
    "read_corelay",
    "read_virelay",
    "save_table",
    "strategy_rows",
    "write_virelay",
]
