"""Checks of what lies between this machine and a coordinator: certificates, control plane, door, tensor plane.

Each check makes one connection with a deadline, says what it saw, and changes nothing at the other end.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from medley.jobs.finding import Finding
from medley.jobs.home import ADDRESS, CREDENTIALS, operator, whereabouts
from medley.protocol.errors import MedleyError, PeerError
from medley.protocol.ids import NS_PER_S
from medley.runtimes.clock import SystemClock

if TYPE_CHECKING:
    from medley.transports.identity import Credentials

CONNECT_S: Final = 5.0
ASK_S: Final = 10.0
# A ZeroMQ peer speaks first: ten bytes, of which the outer two are fixed (ZMTP 3.1, section 3.1).
SIGNATURE_NBYTES: Final = 10
SHOWN: Final = 5  # of a list that may be long
CREDENTIALS_OF_MEMBER: Final = "credentials.pem"
_BEHIND: Final = "set this machine's clock: certificates are not valid yet, or not any more, by its time"


def check_coordinator(directory: Path) -> Iterator[Finding]:
    """The coordinator whose directory this is, over all of its planes."""
    try:
        found = whereabouts(directory)
        if found is None:
            yield Finding(
                "warn", "coordinator", f"none runs here ({directory / ADDRESS} is missing)",
                "nothing to do for training on this machine alone; 'medley up' lets others join",
            )  # fmt: skip
            return
        yield from _control(directory)
        from medley.transports.identity import Credentials

        authority = Credentials.load(directory / CREDENTIALS).authority_pem
    except MedleyError as error:
        yield Finding("fail", "coordinator", str(error), "start it again with 'medley up'")
        return
    if found.door:
        yield check_door(found.door, authority)


def _control(directory: Path) -> Iterator[Finding]:
    from medley.transports.identity import Credentials

    yield _certificate("operator", Credentials.load(directory / CREDENTIALS))
    clock = SystemClock()
    began_ns = clock.now_ns()
    with operator(str(directory)) as client:
        answer = client.ask("status", timeout_s=ASK_S)
    spent_ms = (clock.now_ns() - began_ns) / 1e6
    connected = sum(1 for node in answer["nodes"] if node["connected"])
    yield Finding("ok", "control", f"{answer['addresses'].get('control', '')} answered over TLS in {spent_ms:.0f} ms")
    advice = "" if connected else "'medley token create' prints the line that lets a machine join"
    yield Finding("ok" if connected else "warn", "machines", f"{connected} connected", advice)
    relayed = answer.get("relayed", [])
    if relayed:
        whom = "; ".join(f"{one['node']} to {one['to']}" for one in relayed[:SHOWN])
        more = "" if len(relayed) <= SHOWN else f" and {len(relayed) - SHOWN} more"
        yield Finding("ok", "relay", f"tensors pass this coordinator for machines that cannot connect: {whom}{more}")
    vault = answer["addresses"].get("vault")
    if vault:
        yield check_tensors(vault)


def check_member(directory: Path) -> Iterator[Finding]:
    """This machine as a member of a pool, where it joined one: its certificate, and the way to its coordinator."""
    path = directory / CREDENTIALS_OF_MEMBER
    if not path.exists():
        return
    from medley.transports.identity import Credentials

    try:
        credentials = Credentials.load(path)
        yield _certificate("member", credentials)
    except MedleyError as error:
        yield Finding("fail", "member", str(error), "join again with a new token")
        return
    control = _control_of_member(directory)
    if control:
        yield replace(check_door(control, credentials.authority_pem, path), what="control")
        yield from _ways(directory, control)


def _ways(directory: Path, control: str) -> Iterator[Finding]:
    """How tensors travel from this member: what it was told to use, and what it meets."""
    from medley.runtimes.links import read_links

    links = read_links(directory)
    if links is None or not links.vault:
        return
    if links.transport == "grpc":
        yield Finding("ok", "tensors", f"all go through the coordinator at {control}, as --transport grpc asks")
        return
    direct = check_tensors(links.vault)
    if direct.level != "ok" and links.transport == "auto":
        port = links.vault.rpartition(":")[2]
        yield Finding(
            "warn", "tensors", f"{direct.says}; so they go through the coordinator at {control} instead, which works",
            f"nothing; training is faster if a firewall lets port {port} through",
        )  # fmt: skip
        return
    yield direct
    for one in [one for one in links.relayed if one.endpoint != links.vault][:SHOWN]:
        yield Finding(
            "ok", "tensors", f"{one.to} at {one.endpoint} cannot be reached directly, only through the coordinator"
        )


def _control_of_member(directory: Path) -> str:
    try:
        return str(msgspec.json.decode((directory / "member.json").read_bytes(), type=dict[str, str])["control"])
    except (OSError, KeyError, msgspec.DecodeError):
        return ""


def check_token(text: str) -> Iterator[Finding]:
    """Every door that a join token names. Raises UserError for a damaged token."""
    from medley.transports.identity import parse_token

    token = parse_token(text)
    findings = [check_door(address, token.authority_pem) for address in token.addresses]
    if any(one.level == "ok" for one in findings):
        # One way in is enough; the others are addresses of networks that this machine is not in.
        yield from (one for one in findings if one.level == "ok")
        return
    yield from findings


def check_door(address: str, authority_pem: bytes, own: Path | None = None) -> Finding:
    """A TLS handshake with whoever listens at "host:port", which must be a coordinator of this authority.

    `own` is the file of our credentials, for a port that asks for them.
    """
    from medley.transports.identity import SERVER_NAME

    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=authority_pem.decode())
    context.set_alpn_protocols(["h2"])
    if own is not None:
        context.load_cert_chain(own)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as raw:
            with context.wrap_socket(raw, server_hostname=SERVER_NAME) as secure:
                return Finding("ok", "door", f"{address} answers as this pool's coordinator over {secure.version()}")
    except ssl.SSLCertVerificationError as error:
        clock = "expired" in error.verify_message or "not yet valid" in error.verify_message
        mend = _BEHIND if clock else "another coordinator listens there: get a token of that one"
        return Finding("fail", "door", f"{address} is not this pool's coordinator ({error.verify_message})", mend)
    except (OSError, ValueError) as error:
        return Finding("fail", "door", f"{address} cannot be reached ({_why(error)})", _unreachable(port))


def check_tensors(endpoint: str) -> Finding:
    """Whether a ZeroMQ socket speaks at "tcp://host:port"."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S) as raw:
            raw.settimeout(CONNECT_S)
            greeting = _read(raw, SIGNATURE_NBYTES)
    except (OSError, ValueError) as error:
        return Finding("fail", "tensors", f"{endpoint} cannot be reached ({_why(error)})", _unreachable(port))
    if len(greeting) < SIGNATURE_NBYTES or greeting[0] != 0xFF or greeting[-1] != 0x7F:
        return Finding(
            "fail", "tensors", f"{endpoint} is no tensor socket", "another program took the port: restart it"
        )
    return Finding("ok", "tensors", f"{endpoint} speaks ZMTP")


def _read(raw: socket.socket, wanted: int) -> bytes:
    content = b""
    while len(content) < wanted:
        part = raw.recv(wanted - len(content))
        if not part:
            break
        content += part
    return content


def _certificate(what: str, credentials: Credentials) -> Finding:
    from medley.transports.identity import certificate_facts

    try:
        facts = certificate_facts(credentials.cert_pem)
    except PeerError as error:
        return Finding("fail", what, f"its certificate cannot be read ({error})", "join again with a new token")
    now_ns = SystemClock().wall_ns()
    if now_ns < facts.not_before_ns:
        return Finding("fail", what, f"the certificate of {facts.peer.name} is not valid yet", _BEHIND)
    if now_ns > facts.not_after_ns:
        return Finding("fail", what, f"the certificate of {facts.peer.name} has ended", f"join again, or {_BEHIND}")
    days = (facts.not_after_ns - now_ns) / NS_PER_S / 86400
    return Finding("ok", what, f"certificate of {facts.peer.name} is valid for {days:.1f} days more")


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {CONNECT_S:g} s"
    return getattr(error, "strerror", None) or str(error)


def _unreachable(port: str) -> str:
    return f"is the coordinator running, and does a firewall let port {port} through?"
