"""`medley doctor`: every plane tried for real, and each finding with what to do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.cli.canned import NODE, Canned
from tests.cli.conftest import Cli

from medley.jobs import machine
from medley.jobs.reach import check_door, check_tensors
from medley.transports.identity import Authority, create_token

FREE = "127.0.0.1:1"  # nobody listens at port 1
Findings = dict[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement is tested once, for itself."""
    monkeypatch.setattr(machine, "_compute", lambda: iter(()))


def findings(cli: Cli, *words: str) -> tuple[int, Findings]:
    status, out, err = cli("doctor", "--json", *words)
    assert err == ""
    answer = json.loads(out)
    assert answer["ok"] == (status == 0)
    return status, {one["what"]: one for one in answer["findings"]}


def authority_of(home: Path) -> Authority:
    return Authority.open(home / "coordinator", time.time_ns())


@contextmanager
def tensor_socket() -> Iterator[str]:
    context = zmq.Context()
    with context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        yield f"tcp://127.0.0.1:{port}"
    context.term()


@contextmanager
def stranger(says: bytes) -> Iterator[str]:
    """A server that is none of ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(says)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
    thread.join(20)


def test_a_machine_without_a_coordinator_is_well(cli: Cli) -> None:
    status, found = findings(cli)
    assert status == 0
    assert found["coordinator"]["level"] == "warn"
    assert "'medley up' lets others join" in found["coordinator"]["do"]
    assert found["libraries"]["says"].startswith("torch 2.")


def test_all_planes_of_a_coordinator(cli: Cli, canned: Canned) -> None:
    with tensor_socket() as endpoint:
        status_answer = canned.answers["status"]
        assert isinstance(status_answer, dict)
        status_answer["addresses"]["vault"] = endpoint
        status, found = findings(cli)
    assert status == 0
    assert {
        name: found[name]["level"] for name in ("operator", "control", "machines", "tensors", "door")
    } == dict.fromkeys(("operator", "control", "machines", "tensors", "door"), "ok")
    assert found["machines"]["says"] == "1 connected"
    assert found["tensors"]["says"] == f"{endpoint} speaks ZMTP"
    assert "as this pool's coordinator over TLSv1.3" in found["door"]["says"]


def test_lines_for_a_person(cli: Cli, canned: Canned) -> None:
    status_answer = canned.answers["status"]
    assert isinstance(status_answer, dict)
    status_answer["nodes"] = [{**NODE, "connected": False}]
    status, out, _ = cli("doctor")
    assert status == 0
    assert "warn  machines     0 connected: 'medley token create' prints the line that lets a machine join" in out


def test_a_coordinator_that_is_gone_fails(cli: Cli, canned: Canned, home: Path) -> None:
    (home / "coordinator" / "address.json").write_text(json.dumps({"control": FREE}))
    status, found = findings(cli)
    assert status == 1
    assert f"nothing answers at {FREE}" in found["coordinator"]["says"]
    assert cli("doctor")[1].splitlines()[-1].endswith("checks failed")


def test_a_token_is_tried_and_not_used_up(cli: Cli, canned: Canned, home: Path) -> None:
    door = json.loads((home / "coordinator" / "address.json").read_text())["door"]
    authority = authority_of(home)
    token, _ = create_token(authority.certificate_pem, [FREE, door], time.time_ns())
    status, found = findings(cli, "--token", token.text())
    assert (status, found["door"]["level"]) == (0, "ok")
    unreachable, _ = create_token(authority.certificate_pem, [FREE], time.time_ns())
    status, found = findings(cli, "--token", unreachable.text())
    assert (status, found["door"]["level"]) == (1, "fail")
    assert "does a firewall let port 1 through?" in found["door"]["do"]
    assert not canned.asked


def test_another_pools_coordinator_is_told_apart(canned: Canned, home: Path, tmp_path: Path) -> None:
    door = json.loads((home / "coordinator" / "address.json").read_text())["door"]
    foreign = Authority.open(tmp_path / "foreign", time.time_ns())
    found = check_door(door, foreign.certificate_pem)
    assert found.level == "fail"
    assert "is not this pool's coordinator" in found.says
    assert "another coordinator listens there" in found.do


def test_a_clock_that_is_years_off_is_named(home: Path, canned: Canned, tmp_path: Path) -> None:
    far_ns = time.time_ns() + 3 * 365 * 86400 * 10**9
    late = Authority.open(tmp_path / "late", far_ns)
    (tmp_path / "node").mkdir()
    late.enrol("lab-1", "node", far_ns).save(tmp_path / "node" / "credentials.pem")
    from medley.jobs.reach import check_member

    (found,) = check_member(tmp_path / "node")
    assert (found.level, found.says) == ("fail", "the certificate of lab-1 is not valid yet")
    assert "set this machine's clock" in found.do


def test_a_member_reaches_its_coordinator(cli: Cli, canned: Canned, home: Path) -> None:
    control = json.loads((home / "coordinator" / "address.json").read_text())["control"]
    (home / "coordinator" / "address.json").unlink()
    (home / "node").mkdir()
    authority_of(home).enrol("lab-1", "node", time.time_ns()).save(home / "node" / "credentials.pem")
    (home / "node" / "member.json").write_text(json.dumps({"control": control, "node": "lab-1", "authority": "f"}))
    status, found = findings(cli)
    assert status == 0
    assert found["member"]["says"].startswith("certificate of lab-1 is valid for")
    assert found["control"]["says"].startswith(f"{control} answers as this pool's coordinator")


def test_a_stranger_on_the_tensor_port() -> None:
    with stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        found = check_tensors(f"tcp://{address}")
    assert (found.level, found.says) == ("fail", f"tcp://{address} is no tensor socket")
    assert check_tensors(f"tcp://{FREE}").level == "fail"


def test_a_stranger_on_the_door(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, time.time_ns())
    with stranger(b"220 mail\r\n") as address:
        assert check_door(address, authority.certificate_pem).level == "fail"
    assert check_door("nonsense", authority.certificate_pem).level == "fail"


def test_too_little_room_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = machine.shutil.disk_usage(".")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    status, found = findings(cli)
    assert (status, found["disk"]["level"]) == (1, "fail")
    assert "set MEDLEY_HOME to a larger disk" in found["disk"]["do"]


def test_a_damaged_token_is_a_mistake_not_a_finding(cli: Cli) -> None:
    status, _, err = cli("doctor", "--token", "medley1.AbCd")
    assert (status, err) == (2, "medley: the join token is damaged or cut off: copy the whole line again\n")
    assert cli("doctor", "--token", "x", "--coordinator", "y")[0] == 2


def test_what_the_machine_computes_is_measured() -> None:
    from medley.engines.probe import probe

    ticks = iter(range(0, 10**12, 10**8))
    found = probe(lambda: next(ticks), 0.4)
    # One product of 2 * 1024^3 operations in the 0.2 s of this clock.
    assert found.fp32_gflops == found.bf16_gflops == pytest.approx(2 * 1024**3 / 2e8)
    assert found.threads >= 1
