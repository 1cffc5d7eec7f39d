"""A link in words, and the demonstration behind each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medley.cli.main import run
from medley.jobs.check import check
from medley.jobs.demonstration import specification
from medley.jobs.emulation import Crossed, crossed, in_words, network_named, size
from medley.jobs.load import job_from_dict
from medley.protocol.conditions import PRESETS
from medley.protocol.errors import UserError


def test_a_link_is_said_in_one_sentence() -> None:
    assert in_words("brownout").startswith(
        "'brownout': a round trip of 80 ms, 40 ms of jitter, 5 % of packets lost, 5 Mbit/s each way, "
        "5 s up and 2 s down in turn; one TCP stream gets about "
    )
    assert in_words("straggler").endswith("it computes 10 times slower than it could")


@pytest.mark.parametrize("name", PRESETS)
def test_the_demonstration_has_a_job_for_every_link(name: str) -> None:
    spec = job_from_dict(specification(3, 4.0, name), "the demonstration")
    check(spec)
    assert spec.network.profile == name
    assert spec.train.sync.mode == ("sync" if name in ("none", "good", "straggler") else "local-sgd")


@pytest.mark.parametrize("words", [["demo"], ["join"], ["up", "--dir", "nowhere"]])
def test_an_unknown_link_is_refused_before_anything_starts(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--network", "celular"]) == 2
    assert capsys.readouterr().err == ("medley: --network is 'celular', which is no preset; did you mean 'cellular'?\n")
    assert not Path("nowhere").exists()


def test_a_job_file_with_an_unknown_link_is_refused() -> None:
    wrong = {"network": {"profile": "good", "overrides": {"heartbeats": "none"}}}
    with pytest.raises(UserError, match=r"network\.overrides names 'heartbeats'.*did you mean 'heartbeat'\?"):
        check(job_from_dict(wrong, "job.yaml"))
    with pytest.raises(UserError, match="network.machines is 'shards'"):
        job_from_dict({"network": {"machines": "shards"}}, "job.yaml")
    assert network_named("none").shaped is False


def test_what_crossed_is_of_all_nodes(tmp_path: Path) -> None:
    for name, up in (("a", 1000), ("b", 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.json").write_text(f'{{"up_nbytes": {up}, "down_nbytes": 1}}')
    (tmp_path / "c").mkdir()
    assert crossed(tmp_path) == Crossed(1500, 2)
    assert crossed(tmp_path / "nowhere") == Crossed(0, 0)


def test_sizes_are_said_in_three_figures() -> None:
    assert [size(n) for n in (999, 1000, 41_234_567, 3.2e9)] == ["999 bytes", "1 kB", "41.2 MB", "3.2 GB"]
