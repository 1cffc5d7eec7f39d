"""Who is let in: hosts, origins, keys and bodies."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from medley.protocol.errors import UserError
from medley.protocol.hosts import is_loopback
from medley.serving.guard import Guard, require_key


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


def app(**options: object) -> Guard:
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/health")]
    return Guard(Starlette(routes=routes), **options)  # type: ignore[arg-type]


async def ask(guard: Guard, method: str = "GET", path: str = "/", **options: object) -> httpx.Response:
    transport = httpx.ASGITransport(guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        return await client.request(method, path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8080", "[::1]:8080"])
async def test_this_machine_is_answered(host: str) -> None:
    assert (await ask(app(), headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", ""])
async def test_another_name_for_this_address_is_refused(host: str) -> None:
    assert (await ask(app(), headers={"host": host})).status_code == 421


async def test_public_address_answers_to_any_name_but_wants_the_key() -> None:
    guard = app(key="long-enough", hosts=None)
    wrong = ["", "long-enough", "Bearer", "Bearer wrong", "Basic long-enough", "Bearer lóng-enough"]
    for value in wrong:
        answer = await ask(guard, headers=[("host", "a.example"), ("authorization", value.encode())])
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    right = {"host": "a.example", "authorization": "bearer long-enough"}
    assert (await ask(guard, headers=right)).status_code == 200
    assert (await ask(guard, path="/health", headers={"host": "a.example"})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_post_of_another_origin_is_refused(headers: dict[str, str]) -> None:
    assert (await ask(app(), "POST", headers=headers)).status_code == 403


async def test_own_origin_and_links_from_elsewhere_are_let_in() -> None:
    own = {"origin": "http://localhost:8080", "sec-fetch-site": "same-origin"}
    assert (await ask(app(), "POST", headers=own)).status_code == 200
    assert (await ask(app(), "GET", headers={"sec-fetch-site": "cross-site"})).status_code == 200


async def test_body_up_to_the_limit() -> None:
    guard = app(body_nbytes_max=1000)
    assert (await ask(guard, "POST", content=b"x" * 1000)).text == "1000"
    assert (await ask(guard, "POST", content=b"x" * 1001)).status_code == 413
    assert (await ask(guard, "POST", headers={"content-length": "-5"})).status_code == 413


async def test_body_without_a_length_is_counted() -> None:
    async def chunks():  # type: ignore[no-untyped-def]
        for _ in range(3):
            yield b"x" * 400

    assert (await ask(app(body_nbytes_max=1000), "POST", content=chunks())).status_code == 413


def test_loopback_and_keys() -> None:
    assert all(is_loopback(h) for h in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""))
    assert require_key("127.0.0.1", None) is None
    assert len(require_key("0.0.0.0", "auto") or "") > 30
    with pytest.raises(UserError, match="--api-key"):
        require_key("0.0.0.0", None)
    with pytest.raises(UserError, match="8 characters"):
        require_key("127.0.0.1", "short")
