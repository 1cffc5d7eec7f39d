"""MedQuAD, the National Institutes of Health's question-and-answer collection, from a clone of its
repository.

Ben Abacha and Demner-Fushman, "A Question-Entailment Approach to Question Answering", BMC Bioinformatics
2019; data under CC BY 4.0. Three of its twelve subsets carry no answers (copyright); those questions are
skipped.
Promises: no document type, entity or network reference in a file is ever expanded; archives are unpacked
within bounds.
"""

from __future__ import annotations

import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from medley.data.examples import Example, tidy
from medley.protocol.errors import UserError
from medley.protocol.spec import Data

ARCHIVE = "https://github.com/abachaa/MedQuAD/archive/refs/heads/master.zip"
MAX_ARCHIVE_NBYTES = 256 << 20
MAX_UNPACKED_NBYTES = 1 << 30
MAX_FILE_NBYTES = 8 << 20
DOWNLOAD_TIMEOUT_S = 60.0


def read_medquad(data: Data) -> Iterator[Example]:
    """Every answered question below `data.path`, in path order;

    An empty path downloads the collection once.
    """
    root = Path(data.path).expanduser() if data.path else download(Path.home() / ".cache" / "medley" / "medquad")
    if not root.is_dir():
        raise UserError(f"data.path '{data.path}' is no directory; expected a clone of the MedQuAD repository")
    for path in sorted(root.rglob("*.xml")):
        yield from _pairs(path, path.relative_to(root).as_posix())


def _pairs(path: Path, name: str) -> Iterator[Example]:
    document = parse(path, name)
    focus = tidy(document.findtext("Focus") or "").lower()
    for pair in document.iter("QAPair"):
        question, answer = pair.find("Question"), tidy(pair.findtext("Answer") or "")
        text = tidy("" if question is None else question.text or "")
        if question is not None and text and answer:
            number = question.get("qid") or pair.get("pid") or "?"
            yield Example(f"{name.split('/')[0]}/{number}", focus or text.lower(), text, answer)


def parse(path: Path, name: str) -> Element:
    """One XML file as a tree; refuses document types, so neither entity bombs nor external files can harm."""
    if path.stat().st_size > MAX_FILE_NBYTES:
        raise UserError(f"{name}: larger than {MAX_FILE_NBYTES} bytes, which no MedQuAD file is")
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except expat.ExpatError as error:
        raise UserError(f"{name} line {error.lineno}: not valid XML ({expat.ErrorString(error.code)})") from error
    except _Doctype as error:
        raise UserError(f"{name}: declares a document type, which no MedQuAD file does") from error


class _Doctype(Exception):
    pass


def _refuse_doctype(*_: object) -> None:
    raise _Doctype


def download(directory: Path) -> Path:
    """Fetch and unpack the public archive into `directory` unless it is there. Raises `UserError`."""
    if directory.is_dir():
        return directory
    try:
        with urllib.request.urlopen(ARCHIVE, timeout=DOWNLOAD_TIMEOUT_S) as reply:
            archive = reply.read(MAX_ARCHIVE_NBYTES + 1)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"MedQuAD could not be downloaded ({error}); clone it and give data.path") from error
    if len(archive) > MAX_ARCHIVE_NBYTES:
        raise UserError(f"the archive at {ARCHIVE} is larger than {MAX_ARCHIVE_NBYTES} bytes; clone it instead")
    unpack(archive, directory)
    return directory


def unpack(archive: bytes, directory: Path) -> None:
    """Write the XML members of a zip below `directory`; the directory appears only when all are there."""
    partial = directory.with_name(directory.name + ".partial")
    budget = MAX_UNPACKED_NBYTES
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        for member in members.infolist():
            parts = [p for p in member.filename.split("/")[1:] if p not in ("", "..", ".")]
            if member.is_dir() or not member.filename.endswith(".xml") or not parts:
                continue
            budget -= member.file_size
            if budget < 0 or member.file_size > MAX_FILE_NBYTES:
                raise UserError(f"{member.filename} in the MedQuAD archive unpacks to more than is sane")
            target = partial.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(members.read(member))
    partial.rename(directory)
