"""The page of a real coordinator, served as its process serves it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from medley.dashboard.pool import serve_page
from medley.jobs.operator import Operator
from medley.protocol.codec import text
from medley.protocol.events import Cancel, Submit
from medley.protocol.spec import JobSpec
from medley.runtimes.coordinator import CoordinatorHost, CoordinatorOptions

PATHS = ("/", "/api/snapshot", "/metrics")


async def statuses(directory: Path, headers: dict[str, str]) -> list[int]:
    host = CoordinatorHost(CoordinatorOptions(directory, http_port=0))
    async with serve_page(host, Operator(host)) as address, httpx.AsyncClient(headers=headers) as browser:
        return [(await browser.get(address + path)).status_code for path in PATHS]


def test_on_this_machine_page_and_metrics_want_no_key(tmp_path: Path) -> None:
    assert asyncio.run(statuses(tmp_path, {})) == [200, 200, 200]


@pytest.mark.parametrize("name", ["evil.example", ""])
def test_another_name_than_this_machine_is_refused(tmp_path: Path, name: str) -> None:
    assert asyncio.run(statuses(tmp_path, {"host": name})) == [421, 421, 421]


async def metrics_with_a_job(directory: Path) -> tuple[str, str]:
    host = CoordinatorHost(CoordinatorOptions(directory, http_port=0))
    async with serve_page(host, Operator(host)) as address, httpx.AsyncClient() as browser:
        host.role.handle(Submit("a-012345", text(JobSpec(name="a")), 1), host.clock.now_ns())
        before = (await browser.get(address + "/metrics")).text
        host.role.handle(Cancel("a-012345", 2), host.clock.now_ns())
        return before, (await browser.get(address + "/metrics")).text


def test_gauges_are_of_the_pool_as_it_is(tmp_path: Path) -> None:
    before, after = asyncio.run(metrics_with_a_job(tmp_path))
    for name in ("leases_open", "workers", "shards"):
        assert f'medley_{name}{{job="a-012345"}} 0.0' in before
        assert f"medley_{name}{{" not in after
