"""The page as a browser draws it; skipped where there is no Chromium."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.dashboard.browser import CHROMIUM, Tab, browser
from tests.dashboard.conftest import Shown, shown
from tests.dashboard.sample import HOSTILE, SampleFeed, node, sample, serving

from medley.dashboard.served import served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
LIVE = "document.querySelector('#connection')?.dataset.state === 'live' && !!document.querySelector('#jobs tr')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as one:
        yield one


def text(tab: Tab, place: str) -> str:
    found = tab.evaluate(f"document.querySelector({place!r}).innerText")
    assert isinstance(found, str)
    return found


def count(tab: Tab, selector: str) -> int:
    found = tab.evaluate(f"document.querySelectorAll({selector!r}).length")
    assert isinstance(found, int)
    return found


def test_tables_curves_and_decisions_are_drawn(tab: Tab, page: Shown) -> None:
    tab.open(page.url)
    tab.wait(LIVE)
    assert "its link of 0.4 MB/s would hold up every round" in text(tab, "#nodes")
    assert text(tab, "#jobs tr:first-child").split() == (
        ["medical-qa", "running", "62", "%", "412", "1.18", "1.38", "11.8k", "2", "min", "27", "s"]
    )
    assert "round 412 committed with 2 of 2 because" in text(tab, "#decisions")
    assert "3 of 5" in text(tab, "#figures")
    assert count(tab, "#loss-chart path.line") == 2 and count(tab, "#speed-chart path.line") == 1
    assert {"time since start [min]", "loss [nats/token]", "training", "held-out"} <= set(
        tab.evaluate("[...document.querySelectorAll('#loss-chart text')].map((t) => t.textContent)")
    )


def test_a_served_model_is_a_row_of_stages(tab: Tab, page: Shown) -> None:
    tab.open(page.url)
    tab.wait(LIVE)
    assert "tinyllama-1.1b serving 47.3 tokens/s" in " ".join(text(tab, "#servings").split())
    first = " ".join(text(tab, "#servings .stage:first-child").split())
    assert first.startswith("desktop-1 layers 0–8 pass 19.8 ms busy 93 % queue 2 KV 13.2 MiB memory 1.7 GiB")
    assert first.endswith("reserve desktop-2 to the next 0.4 ms, 104.9 MiB/s")
    assert count(tab, "#servings .stage") == 3
    assert text(tab, "#servings").count("to the next") == 1
    assert "desktop-2 (holds layers 0-15), spot-17 (away)" in text(tab, "#servings")
    assert "laptop-anna, in reserve, goes on after 0.4 s" in text(tab, "#servings .decisions")
    page.publish({"kind": "servings", "servings": []})
    tab.wait("document.querySelector('#served').hidden")


def test_changes_appear(tab: Tab, page: Shown) -> None:
    tab.open(page.url)
    tab.wait(LIVE)
    page.publish({"kind": "node", "node": node("new-machine", ["worker"], "working", 1.0, "")})
    page.publish({"kind": "node_gone", "id": "n-spot-17"})
    page.publish({"kind": "points", "job": "j-7f3a", "curve": "loss", "points": [[600, 1.0]]})
    tab.wait("document.querySelector('#nodes').innerText.includes('new-machine')")
    assert "spot-17" not in text(tab, "#nodes")
    assert "10" in text(tab, "#loss-chart")  # minutes


def test_chat_shows_the_answer(tab: Tab, page: Shown) -> None:
    tab.open(page.url)
    tab.wait(LIVE)
    tab.evaluate("document.querySelector('#question').value = 'What is <b>fever</b>?'")
    tab.evaluate("document.querySelector('#ask').requestSubmit()")
    tab.wait("document.querySelector('#talk .assistant')?.textContent.trim() === 'What is <b>fever</b>?'")
    tab.wait("document.querySelector('#send').textContent === 'Ask'")
    assert page.feed.asked[0][0] == "demo"


def test_key_opens_the_page(tab: Tab) -> None:
    with shown(SampleFeed(), key="a-long-key") as page:
        tab.open(page.url)
        tab.wait("document.querySelector('#door')?.hidden === false")
        tab.evaluate("document.querySelector('#key').value = 'a-long-key'")
        tab.evaluate("document.querySelector('#door').requestSubmit()")
        tab.wait(LIVE)
        assert tab.evaluate("document.getElementById('door').hidden")


def test_hostile_names_stay_text(tab: Tab) -> None:
    data = sample()
    data["nodes"] = [node(HOSTILE, [HOSTILE], "idle", 1.0, HOSTILE)]
    data["jobs"] = [data["jobs"][0] | {"name": HOSTILE, "state": HOSTILE, "reason": HOSTILE}]
    data["decisions"] = [{"at_ms": 1, "subject": HOSTILE, "decision": HOSTILE, "reason": HOSTILE}]
    data["models"] = [HOSTILE]
    odd = serving() | {"name": HOSTILE}
    odd["note"] |= {"reason": HOSTILE, "pipelines": [odd["note"]["pipelines"][0] | {"name": HOSTILE, "state": HOSTILE}]}
    odd["note"]["machines"][4]["name"] = odd["note"]["decisions"][0]["text"] = HOSTILE
    odd["note"]["pipelines"][0]["hops"][0] |= {"machine": HOSTILE, "reserve": HOSTILE}
    data["servings"] = [served(odd)]
    with shown(SampleFeed(data)) as page:
        tab.open(page.url)
        tab.wait(LIVE)
        assert all(HOSTILE in text(tab, place) for place in ("#jobs", "#nodes", "#servings"))
        assert tab.evaluate("document.title") == "Medley"
        assert count(tab, "img") == 1  # the page's own


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_picture(tab: Tab, page: Shown, tmp_path: Path, dark: bool) -> None:
    tab.open(page.url, 1240, 1900, dark)
    tab.wait(LIVE)
    picture = tab.picture()
    assert struct.unpack(">II", picture[16:24]) == (1240, 1900)
    assert len(picture) > 40_000  # an empty page is far smaller
    (tmp_path / "page.png").write_bytes(picture)


def test_nothing_scrolls_sideways_on_a_telephone(tab: Tab, page: Shown) -> None:
    tab.open(page.url, 390, 1200)
    tab.wait(LIVE)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
