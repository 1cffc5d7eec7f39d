"""Where questions and answers come from: one reader a source, all yielding `Example`.

Promises: a person's mistake (missing file, missing field, empty data) is one `UserError` with file and line.
Leaves to others: XML (`medquad`), the split, and everything about tokens.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from medley.data.corpus import load_pairs
from medley.data.examples import Example, tidy
from medley.data.medquad import read_medquad
from medley.protocol.errors import UserError, did_you_mean, first_line
from medley.protocol.spec import Data

# One line of a JSON lines file; beyond it the file is something else, and reading on would only eat memory.
MAX_LINE_NBYTES = 16 << 20


def read(data: Data) -> list[Example]:
    """All examples of a source, in its own order; at most `max_samples`. Raises `UserError`."""
    if data.source not in READERS:
        raise UserError(f"data.source '{data.source}' is unknown; {did_you_mean(data.source, READERS)}")
    examples = list(islice(READERS[data.source](data), data.max_samples or None))
    if not examples:
        raise UserError(f"data.source '{data.source}'{_at(data)} holds no question with an answer")
    return examples


def _at(data: Data) -> str:
    return f" at {data.path}" if data.path else ""


def _builtin(data: Data) -> Iterator[Example]:
    for pair in load_pairs():
        for number, question in enumerate(pair.questions):
            yield Example(f"{pair.id}/{number}", pair.focus.lower(), question, pair.answer)


def _jsonl(data: Data) -> Iterator[Example]:
    path = existing_file(data)
    with path.open(encoding="utf-8-sig") as lines:
        for number in range(1, 1 << 62):
            where = f"{path.name} line {number}"
            line = _line(lines, where)
            if not line:
                return
            if line.strip():
                yield _row(data, _json_object(line, where), where, f"{path.stem}/{number}")


def _line(lines: Any, where: str) -> str:
    try:
        line: str = lines.readline(MAX_LINE_NBYTES + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: the text is not UTF-8 ({error.reason})") from error
    if len(line) > MAX_LINE_NBYTES:
        raise UserError(f"{where}: the line is longer than {MAX_LINE_NBYTES} bytes; one JSON object a line is expected")
    return line


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with question and answer, found {type(row).__name__}")
    return row


def _csv(data: Data) -> Iterator[Example]:
    path = existing_file(data)
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        try:
            for row in rows:
                yield _row(data, row, f"{path.name} line {rows.line_num}", f"{path.stem}/{rows.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path.name} after line {rows.line_num}: not readable as CSV ({error})") from error


def _parquet(data: Data) -> Iterator[Example]:
    import pyarrow  # slow to import; only this source needs it
    import pyarrow.parquet

    path = existing_file(data)
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield _row(data, row, f"{path.name} row {number}", f"{path.stem}/{number}")
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from error


def _hub(data: Data) -> Iterator[Example]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("data.source 'hub' needs the extra: pip install 'medley-lm[hub]'") from error
    try:
        rows = load_dataset(data.path, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield _row(data, row, f"{data.path} row {number}", f"{data.path}/{number}")
    except (OSError, ValueError) as error:
        raise UserError(f"data.path '{data.path}' could not be read from the hub ({first_line(error)})") from error


def existing_file(data: Data) -> Path:
    """`data.path` as a readable file. Raises `UserError`."""
    if not data.path:
        raise UserError(f"data.path is missing; data.source '{data.source}' reads a file")
    path = Path(data.path).expanduser()
    if not path.is_file():
        raise UserError(f"data.path '{data.path}' is no file")
    return path


def _row(data: Data, row: dict[str, Any], where: str, row_id: str) -> Example:
    question, answer = _field(row, data.question, where), _field(row, data.answer, where)
    group = row.get(data.group)
    return Example(row_id, str(group if group not in (None, "") else question).strip().lower(), question, answer)


def _field(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        present = did_you_mean(name, (key for key in row if isinstance(key, str)))
        raise UserError(f"{where}: field '{name}' is missing; {present}")
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{name}' is {type(value).__name__}, expected text")
    if not value.strip():
        raise UserError(f"{where}: field '{name}' is empty")
    return tidy(value)


READERS: dict[str, Callable[[Data], Iterator[Example]]] = {
    "builtin": _builtin,
    "medquad": read_medquad,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "hub": _hub,
}
