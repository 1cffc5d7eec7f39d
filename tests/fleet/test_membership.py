"""Joining, coming back, renewing and being expelled, against a coordinator's real process on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until, until_async

from medley.protocol.errors import MedleyError, Unavailable, UserError
from medley.protocol.messages import Capability, Hello
from medley.runtimes import join as joining
from medley.runtimes.clock import SystemClock
from medley.runtimes.join import JoinOptions, Member, enrol
from medley.runtimes.local import Pool
from medley.transports.control.client import ControlClient, renew
from medley.transports.identity import (
    Authority,
    Credentials,
    Token,
    certificate_facts,
    create_token,
    parse_token,
    signing_request,
)

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("pool"), workers=0, shard_nodes=0, encrypt=True) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is announced: nobody needs to listen for it for long."""
    monkeypatch.setattr(joining, "FIND_S", 0.5)


def new_token(pool: Pool, **wishes: Any) -> Token:
    return parse_token(pool.operator.ask("token", wishes)["token"])


def options(directory: Path, address: str = "", token: str = "", name: str = "lab 3") -> JoinOptions:
    return JoinOptions(address, token, name, worker=True, shard=True, allow_code=False, directory=directory)


def joined(directory: Path, token: Token, address: str = "") -> tuple[Member, Credentials]:
    member = asyncio.run(enrol(options(directory, address), token, lambda line: None))
    return member, Credentials.load(directory / "credentials.pem")


def refused(directory: Path, token: Token, address: str = "") -> str:
    with pytest.raises(MedleyError) as error:
        joined(directory, token, address)
    assert not (directory / "credentials.pem").exists()
    return str(error.value)


def test_a_token_makes_a_member_whose_keys_only_the_owner_reads(pool: Pool, tmp_path: Path) -> None:
    member, credentials = joined(tmp_path / "n", new_token(pool))
    assert member.node.startswith("lab-3-")
    assert credentials.peer == (member.node, "node")
    assert member.control == pool.address["control"]
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "n").iterdir()}
    assert files == {"credentials.pem": 0o600, "member.json": 0o600}


def test_a_lost_reply_is_asked_for_again_with_the_same_key(pool: Pool, tmp_path: Path) -> None:
    token = new_token(pool)
    first = tmp_path / "first"
    key = joining._key(first)
    joined(first, token)
    joining.write_private(first / joining.KEY, key)  # as if the reply had never arrived
    again, credentials = joined(first, token)
    assert credentials.key_pem == key
    assert credentials.peer.name == again.node


def test_a_used_token_is_refused_to_another_key(pool: Pool, tmp_path: Path) -> None:
    token = new_token(pool)
    joined(tmp_path / "a", token)
    assert "already used" in refused(tmp_path / "b", token)


def test_a_wrong_secret_is_refused(pool: Pool, tmp_path: Path) -> None:
    said = refused(tmp_path / "n", replace(new_token(pool), secret="x" * 43))
    assert said.endswith("this token is not known here: ask for a new one with 'medley token create'")


def test_an_expired_token_is_refused(pool: Pool, tmp_path: Path) -> None:
    token = new_token(pool, lifetime_s=1)
    shown = pool.operator.ask("tokens")["tokens"][-1]
    until(lambda: SystemClock().wall_ns() > shown["expires_wall_ns"], what="the end of the token")
    assert "expired" in refused(tmp_path / "n", token)


def test_a_coordinator_of_another_authority_gets_nothing(pool: Pool, tmp_path: Path) -> None:
    stranger = Authority.open(tmp_path, SystemClock().wall_ns())
    token, _ = create_token(stranger.certificate_pem, [pool.address["door"]], SystemClock().wall_ns())
    assert "another coordinator answers" in refused(tmp_path / "n", token)


def test_a_door_where_nobody_is_says_so(pool: Pool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unavailable, match="no coordinator answers at 127.0.0.1"):
        joined(tmp_path / "n", new_token(pool), address)


def test_a_directory_that_cannot_be_written_is_one_sentence(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        joining.run_join(options(tmp_path / "file" / "n", token=new_token(pool).text()))


def test_the_first_time_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a token to join the first time"):
        joining.run_join(options(tmp_path, "127.0.0.1:7071"))


def test_a_second_process_on_the_same_directory_is_refused(pool: Pool, tmp_path: Path) -> None:
    lock = joining.Lock(tmp_path / "lock", "")
    with pytest.raises(UserError, match="member already"):
        joining.run_join(options(tmp_path, token=new_token(pool).text()))
    lock.release()


def test_a_member_comes_back_without_a_token_at_another_address(pool: Pool, tmp_path: Path) -> None:
    member, _ = joined(tmp_path, new_token(pool))
    there = options(tmp_path, "192.0.2.7:7071")
    moved = asyncio.run(joining._membership(there, lambda line: None))
    assert moved.control == "192.0.2.7:" + member.control.rpartition(":")[2]
    assert asyncio.run(joining._membership(options(tmp_path), lambda line: None)).node == member.node


def test_a_certificate_that_ended_asks_for_a_new_token(pool: Pool, tmp_path: Path) -> None:
    member, credentials = joined(tmp_path, new_token(pool))
    now_ns = SystemClock().wall_ns()
    authority = Authority.open(pool.options.directory, now_ns)
    past = authority.issue(signing_request(credentials.key_pem), member.node, "node", now_ns - 60 * DAY_NS)
    replace(credentials, cert_pem=past).save(tmp_path / "credentials.pem")
    with pytest.raises(UserError, match="join again with a new token"):
        asyncio.run(joining._membership(options(tmp_path), lambda line: None))


def test_renewing_gives_the_same_name_a_longer_life_until_it_is_revoked(pool: Pool, tmp_path: Path) -> None:
    member, credentials = joined(tmp_path, new_token(pool))
    now_ns = SystemClock().wall_ns()
    authority = Authority.open(pool.options.directory, now_ns)
    request = signing_request(credentials.key_pem)
    older = replace(credentials, cert_pem=authority.issue(request, member.node, "node", now_ns - 25 * DAY_NS))
    reply = asyncio.run(renew(member.control, older, request))
    old, new = certificate_facts(older.cert_pem), certificate_facts(reply.certificate_pem)
    assert new.peer == old.peer
    assert new.not_after_ns > old.not_after_ns + 20 * DAY_NS
    pool.operator.ask("revoke", {"node": member.node, "reason": "it was stolen"})
    assert "it was stolen" in asyncio.run(renew(member.control, older, request)).refused


def test_an_expelled_machine_joins_again_with_a_new_token(pool: Pool, tmp_path: Path) -> None:
    member, _ = joined(tmp_path, new_token(pool))
    kept = asyncio.run(joining._membership(options(tmp_path, token=new_token(pool).text()), lambda line: None))
    assert kept == member
    pool.operator.ask("revoke", {"node": member.node, "reason": ""})
    again = asyncio.run(joining._membership(options(tmp_path, token=new_token(pool).text()), lambda line: None))
    assert again.node != member.node


async def test_revocation_ends_a_live_stream_and_refuses_the_next(pool: Pool, tmp_path: Path) -> None:
    member = await enrol(options(tmp_path), new_token(pool), lambda line: None)
    reasons: list[str] = []
    client = ControlClient(rng=random.Random(1))
    hello = Hello(member.node, "b1", Capability(1, 1, "", True, True), (), ())
    identity = Credentials.load(tmp_path / "credentials.pem")
    running = asyncio.create_task(
        client.run(member.control, identity, lambda: hello, lambda envelope: None, disconnected=reasons.append)
    )
    await until_async(lambda: client.connected, what="the stream")
    await asyncio.to_thread(pool.operator.ask, "revoke", {"node": member.node, "reason": "lent to a stranger"})
    await until_async(lambda: len(reasons) >= 2, what="two refusals")
    assert all("lent to a stranger" in reason for reason in reasons)
    nodes = await asyncio.to_thread(pool.operator.ask, "nodes")
    assert not next(one for one in nodes["nodes"] if one["node"] == member.node)["connected"]
    running.cancel()
