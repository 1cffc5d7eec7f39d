"""Messages as one readable line, in both directions: `Outcome update=w1.a.1 verdict=committed version=1`.

Left out, since they only repeat the set-up: the job, the present generation, plans, blocks, keys, figures of cost, and
whatever is empty. A span is `epoch:start-stop`, a member `update*weight`, a place `shard@primary+backup`.
"""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medley.protocol import engine, messages, records
from medley.protocol.messages import Address, HeldUpdate, Member, PartWritten, Route, ShardStatus, Span, WorkerStatus
from medley.protocol.records import MemberRecord, ShardPlace

QUIET = {
    "job", "plan", "blocks", "keys", "vault", "threads", "elapsed_ns", "wall_ns", "loss", "tokens", "seconds", "nbytes",
    "digest", "file", "spec", "layout", "routes", "term", "heartbeat_ms", "capability", "root", "correct", "loss_sum",
    "residual_norm", "squared_norm", "address",
}  # fmt: skip
FIRST_LIST = 1 << 32  # lists of keys are numbered from here by the first coordinator


def line(value: Any, generation: int) -> str:
    """One message, record or command."""
    words = [type(value).__name__]
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.name in QUIET or (item in ("", (), False) and not isinstance(item, int | float)):
            continue
        if field.name == "generation" and item == generation and not isinstance(value, records.Placed):
            continue
        if field.name == "reason" or item is False or (field.name == "number" and item >= FIRST_LIST):
            continue
        words.append(f"{field.name}={show(item)}")
    return " ".join(words)


def show(item: Any) -> str:
    match item:
        case bool():
            return "yes" if item else "no"
        case float():
            return f"{item:g}"
        case Span():
            return f"{item.epoch}:{item.start}-{item.stop}"
        case Member():
            return f"{item.update}*{item.weight:g}"
        case MemberRecord():
            stale = f"~{item.staleness}" if item.staleness else ""
            return f"{item.update}{show(item.leases)}*{item.weight:g}{stale}"
        case ShardPlace():
            return f"{item.shard}@{item.primary}" + (f"+{item.backup}" if item.backup else "")
        case PartWritten():
            return f"{item.shard}"
        case HeldUpdate():
            return item.update
        case Address():
            return item.endpoint or "nobody"
        case tuple():
            return "[" + " ".join(show(i) for i in item) + "]"
        case _:
            return str(item)


def read(words: list[str], job: str, generation: int) -> Any:
    """The message that `Name field=value ...` stands for; what is not named is empty, zero or true."""
    kind = _kind(words[0])
    given = dict(word.split("=", 1) for word in words[1:])
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in given:
            values[field.name] = _value(given.pop(field.name), hints[field.name])
        elif field.name == "job":
            values["job"] = job
        elif field.name == "generation":
            values["generation"] = generation
        else:
            values[field.name] = _empty(field.name, hints[field.name])
    assert not given, f"{words[0]} has no {sorted(given)}"
    return kind(**values)


def split(text: str) -> list[str]:
    """Words; brackets and quotes keep theirs together."""
    words, depth, word, quoted = [], 0, "", False
    for c in text:
        quoted ^= c == '"'
        depth += (c == "[") - (c == "]")
        if c == " " and depth == 0 and not quoted:
            words += [word] if word else []
            word = ""
        elif c != '"':
            word += c
    return [*words, word] if word else words


def _kind(name: str) -> type:
    for room in (messages, engine, records):
        found = getattr(room, name, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise AssertionError(f"nothing is called {name}")


def _value(text: str, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        inner = get_args(hint)[0]
        return tuple(_value(word, inner) for word in split(text.strip("[]")))
    if hint is bool:
        return text == "yes"
    if hint in (int, float):
        return hint(text)
    if hint is Span:
        epoch, rest = text.split(":")
        start, stop = rest.split("-")
        return Span(int(epoch), int(start), int(stop))
    if hint is Member:
        update, weight = text.split("*")
        return Member(update, float(weight))
    if hint is HeldUpdate:
        return HeldUpdate(text, True, 1.0)
    if hint is Address:
        return Address(text, text)
    if hint is Route:
        shard, primary = text.split("@")
        return Route(int(shard), (0,), Address(primary, primary))
    return text


def _empty(name: str, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        return ()
    if name in ("finite", "ready"):
        return True
    if name in ("weight", "tokens", "samples", "squared_norm"):
        return hint(2)
    if origin in (Literal, Union, UnionType):
        return get_args(hint)[0]
    if hint is Address:
        return Address("", "")
    if hint in (WorkerStatus, ShardStatus):
        return ()
    return {int: 0, float: 0.0, str: "", bool: False, bytes: b""}[hint]
