"""The browser of an analysed store: look at its samples, select, compare, name. Needs `pip install 'relprop[view]'`.

Dash, Flask and cheroot are imported when it starts.
"""

from relprop.view.serve import PORT, Listening, listen

__all__ = ["PORT", "Listening", "listen"]
