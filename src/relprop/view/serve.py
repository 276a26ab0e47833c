"""Listening: on loopback unless asked, with a token where others can reach it, on a port that is free."""

from __future__ import annotations

import errno
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from relprop.analyse import Analysis
from relprop.errors import InvalidInput, MissingExtra, RelpropError
from relprop.store import Store
from relprop.view.compare import Comparer

PORT = 8050
THREADS = 8


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that is bound to its port: `run()` answers until `stop()`.

    Attributes:
        url: what to open, with the token where there is one.
        token: None where none is needed.
    """

    url: str
    token: str | None
    server: Any

    def run(self) -> None:
        """Answer requests until `stop` is called, or the process is interrupted."""
        try:
            self.server.serve()
        finally:
            self.server.stop()

    def stop(self) -> None:
        """Stop answering."""
        self.server.stop()


def listen(
    store: Store,
    analysis: Analysis,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    comparer: Comparer | None = None,
) -> Listening:
    """Bind the browser of an analysed store to a port.

    Args:
        store, analysis: what is shown; the store is only read, names that people give are kept beside it.
        host: where to listen. On loopback (127.0.0.1, ::1, localhost), the default, only this machine can reach it; on
            any other host visitors must know the token.
        port: 0 for any free one.
        token: of one's own; by default a random one where it is needed, and none on loopback.
        comparer: the model, for presets on demand.

    Raises:
        InvalidInput: the port is in use or not allowed, the host is not this machine's, or nothing was analysed.
        MissingExtra: dash or cheroot is not installed.
    """
    try:
        from cheroot.wsgi import Server

        from relprop.view.app import application
        from relprop.view.guard import is_loopback
    except ImportError as error:
        raise MissingExtra(
            f"the browser needs dash and cheroot ({error.name} cannot be imported)\n  do: pip install 'relprop[view]'"
        ) from error
    if not 0 <= port <= 65535:
        raise InvalidInput(f"port: {port} is none\n  do: give a number up to 65535, or 0 for a free one")
    if token is not None and len(token) < 8:
        raise InvalidInput(
            "token: shorter than 8 characters\n  do: give a longer one, or leave it out for a random one"
        )
    known = token if token is not None or is_loopback(host) else secrets.token_urlsafe(24)
    try:
        _probe(host, port)
        app = application(store, analysis, comparer=comparer, host=host, token=known)
        server = Server((host, port), app.server, numthreads=THREADS, server_name="relprop")
        server.prepare()
    except OSError as error:
        raise _refused(error, host, port) from error
    bound = server.bind_addr[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    shown = f"[{shown}]" if ":" in shown else shown
    url = f"http://{shown}:{bound}/" + (f"?token={known}" if known else "")
    return Listening(url, known, server)


def _probe(host: str, port: int) -> None:
    """Bind the address and let go of it; raises `OSError` where that cannot be done."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family):
        pass


def _refused(error: OSError, host: str, port: int) -> RelpropError:
    words = str(error)
    if error.errno == errno.EADDRINUSE or "in use" in words:
        return InvalidInput(
            f"port: {port} is in use on {host}\n  do: give another --port, or 0 for a free one"
        )
    if error.errno == errno.EACCES or "ermission" in words:
        return InvalidInput(f"port: {port} is not allowed\n  do: give a --port above 1023")
    return InvalidInput(
        f"host: cannot listen on {host}:{port} ({error.strerror or words})\n  do: give 127.0.0.1"
    )
