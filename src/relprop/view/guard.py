"""Who may look: hosts, origins and the token; and what browsers are told not to do."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlencode, urlsplit

from flask import Flask, Response, redirect, request

COOKIE = "relprop-view"
LARGEST = 2_000_000
"""The most bytes of a request."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
"""Sent with every answer: nothing is loaded from elsewhere, and no other page frames this one. (The scatter plot
compiles its drawing routines, hence 'unsafe-eval'.)"""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which others cannot reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def guarded(server: Flask, host: str, token: str | None) -> None:
    """Make a server answer only those who may look.

    host: where it listens. On loopback, requests for another host are refused, so that no web page can reach it through
    a name of its own (DNS rebinding). token: what a visitor must know, once in the address (`?token=…`), then in a
    cookie; None for no token.
    """
    server.config["MAX_CONTENT_LENGTH"] = LARGEST
    local = is_loopback(host)

    def check() -> Response | None:
        asked = urlsplit(f"//{request.host}").hostname or ""
        if local and not is_loopback(asked):
            return _refusal("This page is for this machine only.", 403)
        origin = request.headers.get("Origin")
        if origin and urlsplit(origin).netloc != request.host:
            return _refusal("Requests from other pages are refused.", 403)
        if token is None:
            return None
        given = request.args.get("token")
        if given is not None and request.method == "GET":
            if not _same(given, token):
                return _refusal("The token is wrong.", 403)
            rest = urlencode([(k, v) for k, v in request.args.items(multi=True) if k != "token"])
            answer: Response = redirect(f"/?{rest}" if rest else "/", 303)  # type: ignore[assignment]
            answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
            return answer
        if _same(request.cookies.get(COOKIE, ""), token):
            return None
        return _refusal("A token is needed: open the address that relprop view printed.", 401)

    def headed(answer: Response) -> Response:
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    server.before_request(check)
    server.after_request(headed)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _refusal(words: str, code: int) -> Response:
    return Response(words + "\n", code, mimetype="text/plain")
