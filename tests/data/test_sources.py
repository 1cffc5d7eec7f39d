"""Every source yields the same examples it was written from, and each mistake is one sentence."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from medley.data.medquad import read_medquad, unpack
from medley.data.sources import read
from medley.protocol.errors import UserError
from medley.protocol.spec import Data

GOOD = {"question": "What is  a\ncold?", "answer": "A mild illness.", "group": "Cold"}


def jsonl(path: Path, *lines: str) -> Data:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Data(source="jsonl", path=str(path))


def test_builtin_gives_each_phrasing_an_example_of_its_own() -> None:
    examples = read(Data())
    assert len(examples) > 1200
    assert len({e.id for e in examples}) == len(examples)
    assert {e.group for e in examples if e.id.startswith("asthma.")} == {"asthma"}


def test_jsonl_is_tidied_and_grouped(tmp_path: Path) -> None:
    row = {"question": "Why?", "answer": "Because."}
    first, second = read(jsonl(tmp_path / "a.jsonl", json.dumps(GOOD), "", json.dumps(row)))
    assert (first.question, first.group) == ("What is a cold?", "cold")
    assert second.group == "why?"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"question": "q"}', "a.jsonl line 2: field 'answer' is missing"),
        ('{"question": "q", "answr": "a"}', "did you mean 'answr'"),
        ('{"question": "q", "answer": 3}', "field 'answer' is int, expected text"),
        ('{"question": " ", "answer": "a"}', "field 'question' is empty"),
        ("{", "a.jsonl line 2: not valid JSON"),
        ("[1]", "expected an object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(jsonl(tmp_path / "a.jsonl", json.dumps(GOOD), line))


def test_lone_surrogates_and_other_line_breaks_do_no_harm(tmp_path: Path) -> None:
    odd = {"question": "q\ud800", "answer": "one\u2028two\x85three"}
    (example,) = read(jsonl(tmp_path / "a.jsonl", json.dumps(odd)))
    assert example.question.encode("utf-8")


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "\xff", "answer": "a"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        read(Data(source="jsonl", path=str(path)))


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
def test_missing_and_empty_files_are_one_sentence(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match="is no file"):
        read(Data(source=source, path=str(tmp_path / "none")))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data.path is missing"):
        read(Data(source=source))  # type: ignore[arg-type]


def test_empty_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no question"):
        read(jsonl(tmp_path / "a.jsonl", ""))


def test_csv_names_columns_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('q,a\n"What, now?","This,\nthat."\n,b\n', encoding="utf-8")
    data = Data(source="csv", path=str(path), question="q", answer="a")
    with pytest.raises(UserError, match=r"a.csv line 4: field 'q' is empty"):
        read(data)
    path.write_text('q,a\n"What, now?","This,\nthat."\n', encoding="utf-8")
    assert read(data)[0].answer == "This, that."


def test_parquet_round_trip(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q1", "q2"], "answer": ["a1", "a2"]}), path)
    assert [e.answer for e in read(Data(source="parquet", path=str(path)))] == ["a1", "a2"]
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a Parquet file"):
        read(Data(source="parquet", path=str(path)))


def test_hub_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'medley-lm\[hub\]'"):
        read(Data(source="hub", path="some/thing"))


MEDQUAD = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="1" source="NIDDK"><Focus>Acromegaly</Focus><QAPairs>
<QAPair pid="1"><Question qid="1-1" qtype="information">What is (are) Acromegaly ?</Question>
<Answer>A hormonal   disorder.

                More &amp; more.</Answer></QAPair>
<QAPair pid="2"><Question qid="1-2" qtype="x">Empty?</Question><Answer></Answer></QAPair>
</QAPairs></Document>"""


def test_medquad_is_tidied_and_unanswered_questions_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "1_NIDDK").mkdir()
    (tmp_path / "1_NIDDK" / "1.xml").write_text(MEDQUAD, encoding="utf-8")
    (example,) = read_medquad(Data(source="medquad", path=str(tmp_path)))
    assert example.group == "acromegaly"
    assert example.question == "What is (are) Acromegaly ?"
    assert example.answer == "A hormonal disorder.\nMore & more."


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY x "boom"><!ENTITY y "&x;&x;&x;">]><Document>&y;</Document>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><Document>&x;</Document>',
    ],
)
def test_entities_are_never_expanded(tmp_path: Path, doctype: str) -> None:
    (tmp_path / "1.xml").write_text(doctype, encoding="utf-8")
    with pytest.raises(UserError, match="declares a document type"):
        list(read_medquad(Data(source="medquad", path=str(tmp_path))))


def test_broken_xml_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text("<Document>\n<Focus>", encoding="utf-8")
    with pytest.raises(UserError, match=r"1.xml line 2: not valid XML"):
        list(read_medquad(Data(source="medquad", path=str(tmp_path))))


def test_the_archive_is_unpacked_inside_its_directory_only(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("MedQuAD-master/1/1.xml", MEDQUAD)
        members.writestr("MedQuAD-master/../../evil.xml", MEDQUAD)
        members.writestr("MedQuAD-master/readme.txt", "no")
    unpack(archive.getvalue(), tmp_path / "here" / "medquad")
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert written == ["here/medquad/1/1.xml", "here/medquad/evil.xml"]
