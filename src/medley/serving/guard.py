"""Who may talk to an HTTP address of ours: one ASGI wrapper for the API and the page.

- On loopback only hosts that mean this machine are answered (DNS rebinding), and a browser's request from
  another origin is refused (cross-site POST).
- Elsewhere nothing but /health is answered without the key, and `require_key` refuses to start without one.
- A body beyond the limit is refused as soon as it is known to be, never collected.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medley.protocol.errors import UserError
from medley.protocol.hosts import is_loopback

BODY_NBYTES_MAX = 8 << 20
OPEN_PATHS = frozenset({"/health"})
READ_METHODS = frozenset({"GET", "HEAD"})  # a browser shows their answers to pages of the same origin only
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def require_key(host: str, key: str | None) -> str | None:
    """The key to serve with: as given, made when it is "auto", None on loopback. Raises UserError when
    missing.
    """
    if key == "auto":
        return secrets.token_urlsafe(24)
    if key is not None and len(key) < 8:
        raise UserError("an API key needs at least 8 characters; --api-key auto makes one")
    if key is None and not is_loopback(host):
        raise UserError(
            f"serving on {host} reaches other machines, so it needs a key: give --api-key KEY, "
            "or --api-key auto to have one made, or serve on 127.0.0.1"
        )
    return key


class Guard:
    """Wraps an ASGI application.

    `hosts` are the names a Host header may carry; None on a public address. `open_paths` need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        hosts: Sequence[str] | None = tuple(LOCAL_NAMES),
        body_nbytes_max: int = BODY_NBYTES_MAX,
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        self.app = app
        self.key = key
        self.hosts = None if hosts is None else frozenset(h.lower() for h in hosts)
        self.body_nbytes_max = body_nbytes_max
        self.open_paths = OPEN_PATHS | open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        await self._limited(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Status, code and sentence for a request that is not let in."""
        if self.hosts is not None and _hostname(headers.get("host", "")) not in self.hosts:
            return 421, "wrong_host", "this address answers to localhost only"
        if scope["method"] not in READ_METHODS and not same_origin(headers):
            return 403, "wrong_origin", "a page of another origin may not use this address"
        if self.key is not None and scope["path"] not in self.open_paths and not self._authorised(headers):
            return 401, "invalid_api_key", "give the key of this server: Authorization: Bearer KEY"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.body_nbytes_max:
            return 413, "body_too_large", f"a request has at most {self.body_nbytes_max} bytes"
        return None

    def _authorised(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), (self.key or "").encode())

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, counting what a body without a (true) length really brings."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.body_nbytes_max:
                raise HTTPException(413, f"a request has at most {self.body_nbytes_max} bytes")
            return message

        await self.app(scope, counted, send)


def same_origin(headers: dict[str, str]) -> bool:
    """Whether a request is of the page itself or of no page; `headers` by lower-case name."""
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
