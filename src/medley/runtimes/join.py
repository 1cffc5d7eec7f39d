"""`medley join`: this machine becomes a member of somebody's pool, and stays one.

The key is made here, kept (mode 0600) before the token is redeemed, and never leaves; so a reply that was lost can
be asked for again with the same key. Afterwards the directory holds `credentials.pem` and `member.json`, and no
token is needed. Leaves to others: what a member does (`node`), starting it again when it dies (`supervisor`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from medley.concurrency import TaskGroup
from medley.protocol.conditions import Network
from medley.protocol.doors import JoinReply, JoinRequest
from medley.protocol.errors import MedleyError, Unavailable, UserError
from medley.runtimes.addresses import address_of, is_everywhere, is_loopback, split
from medley.runtimes.children.environment import HOST, PORTS
from medley.runtimes.clock import SystemClock
from medley.runtimes.lifeline import on_stop
from medley.runtimes.lock import Lock
from medley.runtimes.node import NodeOptions
from medley.runtimes.supervisor import Child, Supervisor
from medley.runtimes.up import NODE, TENSOR_PORTS
from medley.transports.control.client import join, renew
from medley.transports.discovery import Found, find, none_found
from medley.transports.identity import (
    Credentials,
    Token,
    certificate_facts,
    new_key,
    parse_token,
    signing_request,
)
from medley.transports.identity.credentials import read_private, write_private

FIND_S = 5.0
KEY = "joining.pem"
CREDENTIALS = "credentials.pem"
MEMBER = "member.json"
TRIES = 3  # a reply may be lost; the same key may ask again


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """`address` is "host:port" of a door, or empty; `token` is empty for a machine that joined before."""

    address: str
    token: str
    name: str
    worker: bool
    shard: bool
    allow_code: bool
    directory: Path
    transport: str = "auto"
    network: Network = field(default_factory=Network)


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine keeps of the pool it belongs to. `authority` is the fingerprint of the pool's authority."""

    control: str
    node: str
    authority: str


def run_join(options: JoinOptions, tell: Callable[[str], None] = print) -> None:
    """Join if need be, then be a member until Ctrl-C or SIGTERM. Raises UserError or Unavailable with one sentence."""
    lock = Lock(
        options.directory / "lock",
        f"this machine is a member already, by another process that uses {options.directory}; "
        "stop that one, or choose another --dir",
    )
    try:
        asyncio.run(_run(options, tell))
    finally:
        lock.release()


async def _run(options: JoinOptions, tell: Callable[[str], None]) -> None:
    member = await _membership(options, tell)
    tell(f"{member.node} belongs to the pool at {member.control}; its state lies in {options.directory}")
    tell("Ctrl-C leaves; 'medley join' without a token comes back")
    problem = await _supervise(options, member)
    if problem:
        raise UserError(problem)


async def _membership(options: JoinOptions, tell: Callable[[str], None]) -> Member:
    kept = _kept(options.directory)
    if options.token:
        token = parse_token(options.token)
        other = kept is None or kept.authority != token.fingerprint or _ended(options.directory)
        if kept is None or other or await _expelled(options.directory, kept):
            return await enrol(options, token, tell)
        tell(f"this machine is a member of that pool already, as {kept.node}; the token was not used")
    if kept is None:
        raise UserError(await _no_token(options.address))
    if _ended(options.directory):
        raise UserError(
            f"the certificate of {kept.node} has ended (it was away too long): "
            "join again with a new token from 'medley token create'"
        )
    return await _found_again(options, kept)


async def _expelled(directory: Path, kept: Member) -> bool:
    """Whether the pool does not know us any more (revoked, say); then the key is not asked with again either."""
    credentials = Credentials.load(directory / CREDENTIALS)
    try:
        reply = await renew(kept.control, credentials, signing_request(credentials.key_pem))
    except MedleyError:
        return False
    if not reply.refused:
        Credentials(reply.certificate_pem, credentials.key_pem, credentials.authority_pem).save(directory / CREDENTIALS)
    return bool(reply.refused)


async def _no_token(address: str) -> str:
    pools = [] if address else await find(FIND_S)
    if pools:
        where = ", ".join(f"'{one.name}' at {one.addresses[0]}" for one in pools)
        return (
            f"found {where}, and a machine needs a token to join the first time: "
            "run 'medley token create' there, and give its line here with --token"
        )
    nothing = "" if address else f" ({none_found(FIND_S)})"
    return "a machine needs a token to join the first time: get one with 'medley token create' there" + nothing


async def _found_again(options: JoinOptions, kept: Member) -> Member:
    """The coordinator may have another address today: the one given, else the one announced, else the one known."""
    port = split(kept.control)[1]
    if options.address:
        return _keep(options.directory, msgspec.structs.replace(kept, control=_at(options.address, port)))
    if is_loopback(split(kept.control)[0]) or await _answers(kept.control):
        return kept
    for one in await _announced(kept.authority):
        for address in one.addresses:
            control = address_of(address, one.control_port)
            if await _answers(control):
                return _keep(options.directory, msgspec.structs.replace(kept, control=control))
    return kept


def _at(door: str, control_port: int) -> str:
    return address_of(split(door)[0], control_port)


async def _answers(address: str) -> bool:
    """Whether anybody listens there; who it is, TLS decides later."""
    try:
        async with asyncio.timeout(FIND_S):
            _, writer = await asyncio.open_connection(*split(address))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _announced(authority: str) -> Sequence[Found]:
    try:
        return [one for one in await find(FIND_S) if one.authority_fingerprint == authority]
    except UserError:
        return []


# -- the door ---------------------------------------------------------------------------------------------------------


async def enrol(options: JoinOptions, token: Token, tell: Callable[[str], None]) -> Member:
    """Redeem a token at the first door that answers. Raises UserError for a refusal, Unavailable for silence."""
    key = _key(options.directory)
    request = JoinRequest(token.id, token.secret, signing_request(key, ""), options.name)
    door, reply = await _redeem(options, token, request)
    if reply.refused:
        raise UserError(f"the coordinator at {door} refused: {reply.refused}")
    credentials = Credentials(reply.certificate_pem, key, token.authority_pem)
    credentials.save(options.directory / CREDENTIALS)
    host, port = split(reply.control_address)
    # The way that led to the door leads to the control port too; what the coordinator calls itself need not.
    control = _at(door, port) if is_everywhere(host) or not is_loopback(split(door)[0]) else address_of(host, port)
    member = _keep(options.directory, Member(control, reply.node, token.fingerprint))
    (options.directory / KEY).unlink(missing_ok=True)
    tell(f"joined as {reply.node}")
    return member


async def _redeem(options: JoinOptions, token: Token, request: JoinRequest) -> tuple[str, JoinReply]:
    doors = [options.address] if options.address else list(token.addresses)
    problems: list[MedleyError] = []
    tried: set[str] = set()
    async for door in _open_doors(doors, token, bool(options.address)):
        if door in tried:
            continue
        tried.add(door)
        try:
            return door, await _ask(door, token, request)
        except MedleyError as error:
            problems.append(error)
    strangers = [error for error in problems if isinstance(error, UserError)]
    if strangers:
        raise strangers[0]
    raise Unavailable(
        f"no coordinator answers at {', '.join(dict.fromkeys(doors))}: is it running, is this machine in its network, "
        f"and does a firewall let port {split(doors[0])[1]} through?"
    )


async def _open_doors(doors: Sequence[str], token: Token, only_these: bool) -> AsyncIterator[str]:
    """Doors that somebody answers at: those given, all knocked at once, then those announced in this network."""
    for door, answers in zip(doors, await asyncio.gather(*map(_answers, doors)), strict=True):
        if answers:
            yield door
    if only_these:
        return
    for one in await _announced(token.fingerprint):
        for address in one.addresses:
            door = address_of(address, one.door_port)
            if await _answers(door):
                yield door


async def _ask(door: str, token: Token, request: JoinRequest) -> JoinReply:
    for left in reversed(range(TRIES)):
        try:
            return await join(door, token.authority_pem, request)
        except Unavailable:
            if not left or not await _answers(door):
                raise
        except UserError:
            raise UserError(
                f"another coordinator answers at {door}, not the one that made this token: nothing was sent to it; "
                "give the right address, or a token of that coordinator"
            ) from None
    raise AssertionError("unreachable")


# -- what is kept -----------------------------------------------------------------------------------------------------


def _key(directory: Path) -> bytes:
    """The key that this machine asks with; kept before it is used. Raises UserError."""
    path = directory / KEY
    if path.exists():
        return read_private(path)
    key = new_key()
    write_private(path, key)
    return key


def _kept(directory: Path) -> Member | None:
    if not (directory / MEMBER).exists() or not (directory / CREDENTIALS).exists():
        return None
    try:
        member = msgspec.json.decode((directory / MEMBER).read_bytes(), type=Member)
        split(member.control)
    except (OSError, msgspec.DecodeError, UserError):
        raise UserError(f"{directory / MEMBER} is damaged: delete it and join again with a new token") from None
    return member


def _keep(directory: Path, member: Member) -> Member:
    write_private(directory / MEMBER, msgspec.json.encode(member))
    return member


def _ended(directory: Path) -> bool:
    facts = certificate_facts(Credentials.load(directory / CREDENTIALS).cert_pem)
    return SystemClock().wall_ns() > facts.not_after_ns


# -- being a member ---------------------------------------------------------------------------------------------------


async def _supervise(options: JoinOptions, member: Member) -> str:
    """Keep the node's process alive until asked to stop; why it cannot be, else an empty sentence."""
    stopped = asyncio.Event()
    on_stop(stopped.set)
    logs = options.directory / "logs"
    problems: list[str] = []

    def gave_up(name: str, status: int) -> None:
        lines = (logs / f"{name}.err").read_text(errors="replace").strip().splitlines()
        problems.append(lines[-1] if lines else f"{name} ended with status {status}")
        stopped.set()

    supervisor = Supervisor(logs, gave_up)
    child = Child("node", NODE, (str(_options_file(options, member)), str(options.directory / CREDENTIALS)))
    async with TaskGroup() as tasks:
        keeping = tasks.create_task(supervisor.keep(child))
        await stopped.wait()
        await supervisor.end(["node"])
        keeping.cancel()
    return problems[0] if problems else ""


def _options_file(options: JoinOptions, member: Member) -> Path:
    alone = is_loopback(split(member.control)[0])
    wanted = NodeOptions(
        name=member.node,
        control=member.control,
        directory=options.directory,
        worker=options.worker,
        shard=options.shard,
        tensor_host=os.environ.get(HOST, ""),
        threads=os.cpu_count() or 1,
        allow_code=options.allow_code,
        tensor_ports=os.environ.get(PORTS, "" if alone else TENSOR_PORTS),
        transport=options.transport,
        network=options.network,
    )
    path = options.directory / "options.json"
    write_private(path, msgspec.json.encode(wanted, enc_hook=str))
    return path
