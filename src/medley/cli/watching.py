"""`medley serve --watch`: the pipelines of a pool, as they are, once a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from medley.cli.asking import Asking
from medley.cli.shown import nbytes, table

EVERY_S = 1.0
WHOSE = {"text": "by the text itself", "model": "by the draft model"}


def watch(asking: Asking, name: str) -> None:
    """Until Ctrl-C; one look where there is no terminal, or with --json."""
    import threading

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    pause = threading.Event()
    with asking.client() as client:
        if asking.as_json or not sys.stdout.isatty():
            answer = client.ask("servings")
            asking.show(answer, lines(answer, name))
            return
        with Live(console=Console(), auto_refresh=False, screen=True) as live:
            while True:
                live.update(Text("\n".join(lines(client.ask("servings"), name))), refresh=True)
                pause.wait(EVERY_S)


def lines(answer: dict[str, Any], name: str = "") -> Iterator[str]:
    found = [s for s in answer["servings"] if name in ("", s["job"], s["name"])]
    if not found:
        yield "nothing is served" if not name else f"nothing called '{name}' is served"
    for serving in found:
        yield from _serving(serving)


def _serving(serving: dict[str, Any]) -> Iterator[str]:
    note = serving.get("note") or {}
    state = "answers" if note.get("serving") else "is not ready"
    rate = note.get("tokens_per_s", 0.0)
    yield f"{serving['job']} {state}: {rate:.1f} tokens/s, {note.get('waiting', 0)} waiting"
    if note.get("reason"):
        yield f"  {note['reason']}"
    machines = {m["name"]: m for m in note.get("machines", ())}
    for pipeline in note.get("pipelines", ()):
        yield ""
        yield (
            f"{pipeline['name']}: {pipeline['state']}, generation {pipeline['generation']}, {pipeline['requests']} "
            f"requests, {pipeline['in_flight']} batches in flight, {pipeline['link_s'] * 1e3:.1f} ms on links"
        )
        if drafts := pipeline.get("drafts"):
            yield "drafts, right of guessed: " + ", ".join(
                f"{d['right']} of {d['tokens']} {WHOSE[s]}" for s, d in drafts.items()
            )
        head = ("stage", "layers", "pass", "busy", "queue", "KV", "memory", "reserve", "to the next")
        links = [*map(_link, pipeline.get("links", ())), *("-" for _ in pipeline["hops"])]
        hops = zip(pipeline["hops"], links, strict=False)
        yield from table(head, [(*_hop(hop, machines.get(hop["machine"], {})), link) for hop, link in hops])
    spare = [m for m in machines.values() if not _works(m["name"], note)]
    if spare:
        yield ""
        yield "beside them: " + ", ".join(f"{m['name']} ({_spare(m)})" for m in spare)
    if note.get("decisions"):
        yield ""
    for decision in note.get("decisions", ())[-8:]:
        yield f"  {decision['subject']}: {decision['text']}"


def _hop(hop: dict[str, Any], machine: dict[str, Any]) -> tuple[str, ...]:
    return (
        hop["machine"],
        f"{hop['first']}-{hop['end'] - 1}",
        f"{hop['pass_s'] * 1e3:.1f} ms",
        f"{100 * machine.get('busy', 0):.0f} %",
        str(machine.get("queue", 0)),
        nbytes(machine.get("kv_nbytes", 0)),
        nbytes(machine.get("memory_nbytes", 0)),
        hop["reserve"] or "-",
    )


def _link(link: dict[str, Any] | None) -> str:
    """As it was measured; stages of one computer are not."""
    return f"{link['rtt_s'] * 1e3:.2g} ms, {nbytes(link['bytes_per_s'])}/s" if link else "-"


def _works(name: str, note: dict[str, Any]) -> bool:
    return any(hop["machine"] == name for p in note["pipelines"] for hop in p["hops"])


def _spare(machine: dict[str, Any]) -> str:
    if not machine["up"]:
        return "away"
    held = machine["layers"]
    return f"holds layers {held[0]}-{held[-1]}" if held else "holds nothing"


def announce(name: str, url: str, key: str | None, as_json: bool) -> None:
    """Where a served model answers."""
    import json

    if as_json:
        click.echo(json.dumps({"model": name, "url": f"{url}/v1", "api_key": key}))
        return
    click.echo(f"{name} answers at {url}/v1 (Ctrl-C stops)")
    if key:
        click.echo(f"key: {key}")
