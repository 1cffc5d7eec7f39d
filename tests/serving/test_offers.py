"""Which served model a person means, and whom it may be passed on to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medley.serving.offers import Offer, chosen, offers

URL = "http://127.0.0.1:8080/v1"


def serving(name: str, **note: Any) -> dict[str, Any]:
    return {"job": f"{name}-1a2b", "name": name, "note": {"serving": True, "offer": Offer(name, URL).noted, **note}}


def test_only_what_answers_and_says_where_is_an_offer() -> None:
    silent = {"job": "new-1", "name": "new", "note": None}
    loading = serving("loading", serving=False)
    odd = serving("odd", offer={"url": "file:///etc/passwd"})
    assert offers([silent, loading, odd, serving("large")]) == [Offer("large", URL, job="large-1a2b")]


def test_a_model_is_meant_by_its_name_or_its_job() -> None:
    among = offers([serving("small"), serving("large")])
    assert chosen("large", among) == chosen("large-1a2b", among) == among[1]
    assert chosen("larg", among) is None


def test_a_path_means_its_directory_and_no_namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").mkdir()
    monkeypatch.chdir(tmp_path)
    elsewhere = Offer("large", URL, source=str(tmp_path / "other" / "large"))
    same = Offer("large", URL, source=str(tmp_path / "large"))
    assert chosen("./large", [elsewhere]) is None
    assert chosen("./large", [elsewhere, same]) == chosen(str(tmp_path / "large"), [same]) == same


@pytest.mark.parametrize(
    ("url", "keyed", "open_here"),
    [
        (URL, False, True),
        ("http://localhost:80/v1", False, True),
        (URL, True, False),
        ("http://192.168.1.20:8080/v1", False, False),
        ("http://127.0.0.1.evil.example/v1", False, False),
    ],
)
def test_anybody_here_may_ask_by_loopback_without_a_key_only(url: str, keyed: bool, open_here: bool) -> None:
    assert Offer("large", url, keyed).open_here is open_here
