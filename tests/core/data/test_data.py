"""Prompts from files, and the order in which training sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maxpo.config import DataConfig
from maxpo.data.order import PromptStream
from maxpo.data.prompts import load_prompts
from maxpo.errors import DataError
from tests.fakes import prompt


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


def test_rows_become_prompts_with_stable_ids_and_duplicates_stay(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": 2}, {"prompt": "1+1=", "answer": 2}, {"prompt": "2+2=", "answer": 4}]
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", rows), eval_file=write(tmp_path / "b.jsonl", rows[2:]))
    train, held_out = load_prompts(config, seed=0, eval_size=1, encode=encode)
    assert [p.text for p in train] == ["1+1=", "1+1=", "2+2="]
    assert len({p.prompt_id for p in train}) == 3
    assert train[2].prompt_id == held_out[0].prompt_id
    assert train[0].reference == 2
    assert train[0].token_ids == (49, 43, 49, 61)
    again, _ = load_prompts(config, seed=5, eval_size=0, encode=encode)
    assert list(again) == list(train)


def test_bad_rows_are_all_reported_with_line_and_field(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "answer": 1},
        {"answer": 1},
        "{broken",
        {"prompt": "b", "reward": 3},
        {"prompt": "", "answer": 1},
        [1],
    ]
    config = DataConfig(train_file=write(tmp_path / "bad.jsonl", rows))
    with pytest.raises(DataError) as error:
        load_prompts(config, seed=0, eval_size=0, encode=encode)
    text = str(error.value)
    assert "bad.jsonl: 5 of 6 rows" in text
    for part in (
        "line 2: field `prompt`",
        "line 3: not JSON",
        "line 4: field `answer` is missing; the row has prompt, reward",
        "line 5: field `prompt`",
        "line 6: expected an object",
    ):
        assert part in text


def test_limits(tmp_path: Path) -> None:
    config = DataConfig(
        train_file=write(tmp_path / "a.jsonl", [{"prompt": "abcdef", "answer": 1}]), max_prompt_tokens=5
    )
    with pytest.raises(DataError, match=r"has 6 tokens.*max_prompt_tokens = 5"):
        load_prompts(config, seed=0, eval_size=0, encode=encode)
    config = DataConfig(train_file=config.train_file, eval_file=config.train_file)
    with pytest.raises(DataError, match="no rows"):
        load_prompts(DataConfig(train_file=write(tmp_path / "e.jsonl", [])), seed=0, eval_size=0, encode=encode)


def test_a_stream_visits_everything_once_a_pass_in_an_order_of_its_seed() -> None:
    prompts = [prompt(str(i)) for i in range(10)]
    stream = PromptStream(prompts, seed=1)
    first, second = [p.prompt_id for p in stream.next(10)], [p.prompt_id for p in stream.next(10)]
    assert sorted(first) == sorted(second) == sorted(p.prompt_id for p in prompts)
    assert first != second
    assert first != [p.prompt_id for p in PromptStream(prompts, seed=2).next(10)]
    assert stream.epochs(stream.cursor) == 2.0


def test_a_stream_goes_on_where_it_was_saved() -> None:
    prompts = [prompt(str(i)) for i in range(7)]
    stream = PromptStream(prompts, seed=1)
    stream.next(9)
    state = json.loads(json.dumps(stream.state_dict()))
    rest = [p.prompt_id for p in stream.next(20)]
    other = PromptStream(prompts, seed=1)
    other.load_state_dict(state)
    assert [p.prompt_id for p in other.next(20)] == rest
    with pytest.raises(ValueError, match=r"run\.seed = 1, this run has 2"):
        PromptStream(prompts, seed=2).load_state_dict(state)


def test_a_position_in_other_prompts_is_refused() -> None:
    prompts = [prompt(str(i)) for i in range(7)]
    state = json.loads(json.dumps(PromptStream(prompts, seed=1).state_dict()))
    others = (prompts[:-1], prompts[::-1], [*prompts[:-1], prompt("6", token_ids=(1, 3))])
    for other in others:
        with pytest.raises(DataError, match=r"training prompts are not those of the checkpoint.*data\.train_file"):
            PromptStream(other, seed=1).load_state_dict(state)
