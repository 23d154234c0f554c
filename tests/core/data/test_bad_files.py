"""Files that cannot be used: each is told by its name, with what is wanted, in a readable length."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from maxpo.config import DataConfig
from maxpo.data.prompts import load_prompts
from maxpo.errors import DataError
from maxpo.types import Prompt

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
ROW = {"prompt": "3", "answer": "3"}
LONGEST = 2500


def rows_of(file: Path, **keys: Any) -> list[Prompt]:
    return list(load_prompts(DataConfig(train_file=str(file), **keys), seed=0, eval_size=0, encode=_encode)[0])


def _encode(text: str) -> list[int]:
    return list(text.encode())


def refused(file: Path, **keys: Any) -> str:
    with pytest.raises(DataError) as error:
        rows_of(file, **keys)
    said = str(error.value)
    assert file.stem in said and len(said) < LONGEST
    return said


@pytest.mark.parametrize(
    "text",
    [json.dumps([ROW, ROW]), json.dumps([ROW], indent=2), "[\n", "[]", "\n\n[" + json.dumps(ROW) + ",\n", "[" * 10**5],
)
def test_an_array_is_told_with_the_command_that_converts_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    assert "begins with an array, but JSON lines are wanted" in refused(file)
    assert "jq -c '.[]?'" in refused(file, max_bad_rows=5)


@pytest.mark.parametrize("text", [json.dumps(ROW, indent=2), json.dumps(ROW, indent=2) * 2, '{"prompt":\n"3"}'])
def test_a_pretty_printed_value_is_told(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    assert "begins with a value that spans several lines" in refused(file)


def test_a_bad_first_row_is_a_bad_row_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a\n' + json.dumps(ROW))
    assert "line 1: not JSON" in refused(file)
    assert len(rows_of(file, max_bad_rows=1)) == 1


@pytest.mark.parametrize(
    ("column", "type_"),
    [
        (b"\xff\xfe", pa.string()),
        (datetime.datetime.max, None),
    ],
)
def test_values_that_cannot_be_converted_are_bad_rows(column: object, type_: object, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    if type_ is None:
        answers = pa.array([0, 2**62, 1], pa.int64()).cast(pa.timestamp("us"), safe=False)
        table = pa.table({"prompt": ["1", "2", "3"], "answer": answers})
    else:
        wrong = pa.array([b"1", column, b"3"], pa.binary()).view(pa.string())
        table = pa.table({"prompt": ["1", "2", "3"], "answer": wrong})
    parquet.write_table(table, file)
    assert "row 1: the row cannot be read" in refused(file)
    if type_ is not None:
        assert [p.reference for p in rows_of(file, max_bad_rows=1)] == ["1", "3"]


def test_a_flipped_byte_anywhere_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"prompt": [str(i) for i in range(50)], "answer": ["x"] * 50}), file)
    good = file.read_bytes()
    for position in range(0, len(good), 7):
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :])
        try:
            rows_of(file)
        except DataError as error:
            assert len(str(error)) < LONGEST
    file.write_bytes(good[:100])
    assert "cannot be read as parquet" in refused(file)


@pytest.mark.parametrize("source", ["a\nb", "a\x1b[31mb", "\0", "x" * 201, "\ud800", ["a"], 3])
def test_a_source_that_is_no_name_is_a_bad_row(source: object, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**ROW, "data_source": source}))
    assert "field `data_source` must be" in refused(file)


def test_a_file_whose_name_is_no_name_of_a_source(tmp_path: Path) -> None:
    file = tmp_path / "a\nb.jsonl"
    file.write_text(json.dumps(ROW))
    with pytest.raises(DataError, match="the name of a source must have at most 200 characters without line breaks"):
        rows_of(file)


def test_an_answer_with_half_a_pair_of_surrogates_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**ROW, "answer": ["\ud800"]}))
    assert "line 1: field `answer` must be a JSON value" in refused(file)


@pytest.mark.parametrize("row", [{f"key {i} {'x' * 90}": 1 for i in range(10000)}, {"y" * 10**6: 1}])
def test_huge_rows_give_short_messages(row: dict[str, int], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([json.dumps(row)] * 12))
    assert "field `prompt` is missing; the row has " in refused(file)
    parquet.write_table(pa.table({name: [value] for name, value in list(row.items())[:500]}), tmp_path / "c.parquet")
    assert "has no column prompt, it has " in refused(tmp_path / "c.parquet")
