"""What a node and the coordinator know of engines that are called by relay: names, owners, files for the doctor."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from medley.jobs import reach
from medley.jobs.finding import Finding
from medley.protocol.errors import PeerError, UserError
from medley.protocol.messages import Address, Called, EngineDown, EngineUp, Peers, Route, Routes, ToNode
from medley.protocol.stages.words import STAGE
from medley.runtimes.children import plane
from medley.runtimes.children.environment import GATE, LINK, TRANSPORT, transport
from medley.runtimes.links import Links, LinksFile, Relayed, name_of, read_links
from medley.runtimes.switchboard import Switchboard
from medley.transports.tunnel.contract import Place, Why


def address(port: int) -> Address:
    return Address(f"tcp://10.0.0.2:{port}", base64.b64encode(bytes([port % 256]) * 32).decode())


VAULT, SHARD, WORKER, OTHER = map(address, (7080, 7081, 7082, 7083))
STAGE_E, STAGE_F, FRONT = map(address, (7084, 7085, 7086))


class Room:
    """A switchboard over a coordinator that runs two jobs."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ToNode]] = []
        self.told: list[tuple[str, str]] = []
        role = SimpleNamespace(
            vault=VAULT,
            revoked={"thief": "stolen"},
            runs={"j": _run({("a", 0): SHARD, ("b", -1): WORKER}), "k": _run({("c", 0): OTHER, ("d", -1): WORKER})},
            servings=SimpleNamespace(live={"s": _serving({"e": STAGE_E, "f": STAGE_F}), "t": _serving({"g": OTHER})}),
        )
        self.board = Switchboard(
            cast(Any, role), "0.0.0.0", self._send, lambda who, text: self.told.append((who, text))
        )

    def _send(self, node: str, message: ToNode) -> bool:
        self.sent.append((node, message))
        return True


def _run(addresses: dict[tuple[str, int], Address]) -> SimpleNamespace:
    return SimpleNamespace(over=False, ctx=SimpleNamespace(roster=SimpleNamespace(addresses=addresses)))


def _serving(addresses: dict[str, Address]) -> SimpleNamespace:
    stages = {node: SimpleNamespace(node=node, address=found) for node, found in addresses.items()}
    return SimpleNamespace(job="s", front=FRONT, stages=stages)


def test_a_stage_may_call_the_others_and_the_front_end() -> None:
    board = Room().board
    assert board.find("e", name_of(STAGE_F)) == Place("f", "the stage of s", STAGE_F.endpoint)
    assert board.find("e", name_of(FRONT)) == Place("", "the front end of s", FRONT.endpoint, "10.0.0.2", 7086)


def test_a_worker_may_call_the_vault_and_the_shards_of_its_own_job() -> None:
    board = Room().board
    assert board.find("b", name_of(VAULT)) == Place("", "the vault", VAULT.endpoint, "127.0.0.1", 7080)
    assert board.find("b", name_of(SHARD)) == Place("a", "shard 0 of j", SHARD.endpoint)


@pytest.mark.parametrize(
    ("asker", "wanted"),
    [("b", OTHER), ("stranger", SHARD), ("a", WORKER), ("b", STAGE_E), ("b", Address("tcp://127.0.0.1:22", ""))],
    ids=["another job's shard", "no part in the job", "a worker, which serves nobody", "no stage", "no engine at all"],
)
def test_nobody_may_call_anything_else(asker: str, wanted: Address) -> None:
    with pytest.raises(PeerError, match="has an engine of this name"):
        Room().board.find(asker, name_of(wanted))


def test_a_job_that_is_over_has_no_engines() -> None:
    room = Room()
    cast(Any, room.board)._role.runs["j"].over = True
    with pytest.raises(PeerError):
        room.board.find("b", name_of(SHARD))


def test_a_revoked_node_is_not_admitted_and_others_are_called_and_explained() -> None:
    room = Room()
    with pytest.raises(PeerError, match="thief was revoked: stolen"):
        room.board.admitted("thief")
    room.board.admitted("b")
    assert room.board.call("a", 7, "n")
    assert room.sent == [("a", Called(7, "n"))]
    room.board.piped("b", Place("a", "shard 0 of j", SHARD.endpoint), Why.SILENT)
    (told,) = room.told
    assert told == (
        "b",
        "reaches shard 0 of j on a through the coordinator: tcp://10.0.0.2:7081 does not answer it",
    )


def links(directory: Path, how: str = "auto") -> Links:
    return Links(directory, "10.0.0.1:7070", how, lambda: cast(Any, None))


def test_a_node_knows_its_own_engines_for_as_long_as_they_live(tmp_path: Path) -> None:
    node = links(tmp_path)
    node.said(EngineUp("j", 1, 0, SHARD))
    assert node._own(name_of(SHARD)) == ("10.0.0.2", 7081)
    assert node._own(name_of(OTHER)) is None
    node.said(EngineDown("j", 1, 0, "killed", False))
    assert node._own(name_of(SHARD)) is None


def test_a_front_end_is_not_taken_for_the_vault(tmp_path: Path) -> None:
    node = links(tmp_path)
    node.told(Routes("j", 1, (), VAULT))
    node.told(Peers("s", 1, STAGE, 1, (), FRONT))
    node._piped(name_of(FRONT), Why.SILENT)
    relayed = (Relayed("the front end of s", FRONT.endpoint, "silent"),)
    assert read_links(tmp_path) == LinksFile("auto", VAULT.endpoint, relayed)


def test_what_the_doctor_reads(tmp_path: Path) -> None:
    node = links(tmp_path)
    assert read_links(tmp_path) is None
    node.told(Routes("j", 1, (Route(0, (0,), SHARD),), VAULT))
    node._piped(name_of(SHARD), Why.SILENT)
    relayed = (Relayed("shard 0 of j", SHARD.endpoint, "silent"),)
    assert read_links(tmp_path) == LinksFile("auto", VAULT.endpoint, relayed)
    links(tmp_path)
    assert read_links(tmp_path) is None, "a new life of the node knows nothing yet"
    (tmp_path / "links.json").write_text("{")
    assert read_links(tmp_path) is None


async def test_engines_are_told_of_the_gate_unless_only_the_direct_way_counts(tmp_path: Path) -> None:
    for how in ("auto", "grpc", "direct"):
        node, ready = links(tmp_path, how), asyncio.Event()
        running = asyncio.create_task(node.run(ready))
        await ready.wait()
        told = node.environment()
        running.cancel()
        await asyncio.wait([running])
        assert told[TRANSPORT] == how
        assert (len(told[GATE].split()) == 2) == (how != "direct")


def test_a_transport_that_is_none_is_refused() -> None:
    assert transport("") == "auto"
    with pytest.raises(UserError, match="is no transport: write auto, direct or grpc"):
        transport("carrier pigeon")


@pytest.mark.parametrize(("how", "emulated"), [("auto", True), ("direct", True), ("grpc", False)])
def test_a_jobs_network_makes_nobody_dial_who_wants_only_grpc(
    monkeypatch: pytest.MonkeyPatch, how: str, emulated: bool
) -> None:
    monkeypatch.setenv(TRANSPORT, how)
    monkeypatch.setenv(GATE, "127.0.0.1:1 secret")
    monkeypatch.setenv(LINK, "127.0.0.1:2 secret")
    found = plane.ways()
    assert (found.emulated is not None) == emulated
    assert found.transport == ("direct" if emulated else "grpc")
    assert (found.detour is not None) == (not emulated)


def ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: LinksFile, reachable: bool) -> list[Finding]:
    level, says = ("ok", "speaks ZMTP") if reachable else ("fail", f"{file.vault} cannot be reached (no answer in 5 s)")
    monkeypatch.setattr("medley.runtimes.links.read_links", lambda directory: file)
    monkeypatch.setattr(reach, "check_tensors", lambda endpoint: Finding(cast(Any, level), "tensors", says))
    return list(reach._ways(tmp_path, "10.0.0.1:7070"))


def test_the_doctor_says_which_way_tensors_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relayed = (Relayed("shard 0 of j", SHARD.endpoint, "silent"),)
    (one,) = ways(tmp_path, monkeypatch, LinksFile("grpc", VAULT.endpoint, relayed), False)
    assert one == Finding("ok", "tensors", "all go through the coordinator at 10.0.0.1:7070, as --transport grpc asks")
    (one,) = ways(tmp_path, monkeypatch, LinksFile("auto", VAULT.endpoint, relayed), False)
    assert one.level == "warn"
    assert one.says.endswith("so they go through the coordinator at 10.0.0.1:7070 instead, which works")
    (one,) = ways(tmp_path, monkeypatch, LinksFile("direct", VAULT.endpoint), False)
    assert one.level == "fail"
    first, second = ways(tmp_path, monkeypatch, LinksFile("auto", VAULT.endpoint, relayed), True)
    assert first.level == "ok"
    assert second.says == "shard 0 of j at tcp://10.0.0.2:7081 cannot be reached directly, only through the coordinator"
