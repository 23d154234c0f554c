"""Rows of every format, several sources by weight, chat templates, and what is left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from launch.cli import main
from launch.run.preflight import chat_template
from launch.run.wording import passes
from maxpo.config import DataConfig
from maxpo.configure.loading import load_config
from maxpo.data.order import Mixture, PromptStream, WeightedRoundRobin, integer_weights
from maxpo.data.prompts import load_prompts
from maxpo.errors import DataError
from maxpo.types import Prompt
from tests.core.data.test_data import encode, write
from tests.fakes import prompt

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0, "answer": "1+1=2 #### 2", "question": "1+1?"},
}
SKYRL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "env_class": "gsm8k",
    "reward_spec": {"method": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}
TEMPLATE = (
    "{% if messages[0].content == 'no' %}{{ raise_exception('no systems') }}{% endif %}"
    "{% for m in messages %}{{ m.role[0] }}={{ m.content }}:{% endfor %}{% if add_generation_prompt %}a={% endif %}"
    "{% if short %}1{% endif %}"
)


def chat(messages: Any) -> tuple[str, list[int]]:
    text = "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"
    return text, encode(text)


def load(eval_size: int = 0, **keys: Any) -> tuple[Mixture, list[Prompt], list[str]]:
    said: list[str] = []
    found = load_prompts(DataConfig(**keys), seed=0, eval_size=eval_size, encode=encode, chat=chat, say=said.append)
    return *found, said


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_ids_of_text_rows_are_what_they_have_always_been(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": 2}, {"prompt": "1+1=", "answer": 2}]
    train, _, _ = load(train_file=write(tmp_path / "a.jsonl", rows))
    assert [p.prompt_id for p in train] == ["379ce8d8a40d6095-1", "379ce8d8a40d6095-2"]
    assert PromptStream(train, 0).state_dict()["prompts"] == PromptStream(list(train), 0).state_dict()["prompts"]


@pytest.mark.parametrize("row", [VERL, SKYRL], ids=["verl", "skyrl"])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_of_other_trainers(row: dict[str, Any], form: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{form}"
    train, _, _ = load(train_file=parquet(path, [row]) if form == "parquet" else write(path, [row]))
    assert list(train) == [
        Prompt(
            prompt_id="721350edfc80e11f-1",
            text="<user>1+1?<assistant>",
            token_ids=tuple(encode("<user>1+1?<assistant>")),
            reference="2",
            source="openai/gsm8k",
        )
    ]


def test_a_mixed_table_has_its_answers_where_they_are_not_null(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "answer": "x", "reward_model": None},
        {"prompt": "b", "reward_model": {"ground_truth": "y", "style": "rule"}},
    ]
    train, _, _ = load(train_file=parquet(tmp_path / "mixed.parquet", rows))
    assert [(p.text, p.reference, p.source) for p in train] == [("a", "x", "mixed"), ("b", "y", "mixed")]


def test_fields_can_be_elsewhere_for_all_files_and_for_one(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"question": "p", "meta": {"solution": [1, {"x": None}], "set": "s"}}])
    second = parquet(tmp_path / "b.parquet", [{"q": "r", "meta": {"solution": "z"}}])
    train, held_out, _ = load(
        eval_size=1,
        fields={"prompt": "question", "answer": "meta.solution", "source": "meta.set"},
        train=[{"source": first}, {"source": second, "fields": {"prompt": "q"}}],
        eval_file=first,
    )
    assert [(p.text, p.reference, p.source) for p in train] == [("p", [1, {"x": None}], "s"), ("r", "z", "b")]
    assert held_out == [train[0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "answer": 1, "data_source": 3}, "field `data_source` must be text, not 3"),
        ({"prompt": 3, "answer": 1}, "field `prompt` must be a non-empty string, or a list of chat messages"),
        ({"prompt": [], "answer": 1}, "field `prompt` must be a non-empty string, or a list of chat messages"),
        ({"prompt": ["a"], "answer": 1}, "field `prompt`, message 1: expected an object with `role` and `content`"),
        (
            {"prompt": [{"role": "human", "content": "a"}], "answer": 1},
            "field `prompt`, message 1: `role` must be one of system, user, assistant, tool, not 'human'",
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": [1]}], "answer": 1},
            "field `prompt`, message 2: `content` must be text",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}], "answer": 1}, "the last message is the assistant's"),
        ({"prompt": "a", "reward_model": {"style": "rule"}}, "field `answer` is missing"),
        ('"a"', "expected an object with `prompt` and `answer`"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_refused_or_left_out_and_said(row: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": 1}, "", row, {"prompt": "b", "answer": 1}])
    with pytest.raises(DataError, match="1 of 3 rows cannot be used:\n  line 3: ") as error:
        load(train_file=path)
    assert message in str(error.value)
    train, _, said = load(train_file=path, max_bad_rows=1)
    assert [p.text for p in train] == ["a", "b"]
    assert said[0].startswith(f"training: {path}: 2 prompts; left out: 1 bad rows (line 3: ")
    assert message in said[0]


def test_more_bad_rows_than_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["{"] * 13 + [{"prompt": "a", "answer": 1}])
    with pytest.raises(DataError, match=r"13 of 14 rows cannot be used \(data.max_bad_rows = 12\)") as error:
        load(train_file=path, max_bad_rows=12)
    assert "line 10" in str(error.value)
    assert "line 11" not in str(error.value)
    assert "and 3 more" in str(error.value)
    with pytest.raises(DataError, match="none of its 1 rows can be used: left out: 1 bad rows"):
        load(train_file=write(tmp_path / "none.jsonl", ["{"]), max_bad_rows=5)


def test_bytes_are_no_text_and_no_answer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff", "answer": 1}\n')
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        load(train_file=str(tmp_path / "a.jsonl"))
    path = parquet(tmp_path / "a.parquet", [{"prompt": "a", "answer": b"x"}])
    with pytest.raises(DataError, match="row 0: field `answer` must be a JSON value"):
        load(train_file=path)


def test_a_line_separator_inside_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b\x85", "answer": 1}, ensure_ascii=False), encoding="utf-8")
    assert load(train_file=str(path))[0][0].text == "a\u2028b\x85"


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"question": "a", "answer": "x"}])
    with pytest.raises(DataError, match=r"no column prompt, it has answer, question: say with data.fields"):
        load(train_file=path)
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"b.parquet cannot be read as parquet"):
        load(train_file=str(tmp_path / "b.parquet"))


def test_prompts_that_are_too_long(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * n, "answer": 1} for n in (3, 6, 4, 7)]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"line 2 has 6 tokens.*max_prompt_tokens = 5; 2 of 4 prompts are longer"):
        load(train_file=path, max_prompt_tokens=5)
    train, held_out, said = load(eval_size=2, train_file=path, eval_file=path, max_prompt_tokens=5, overlong="drop")
    assert [len(p.text) for p in train] == [len(p.text) for p in held_out] == [3, 4]
    assert said == [
        f"training: {path}: 2 prompts; left out: 2 over data.max_prompt_tokens (line 2 has 6 tokens)",
        f"evaluation: {path}: 2 prompts; left out: 1 over data.max_prompt_tokens (line 2 has 6 tokens)",
    ]


def test_a_file_that_changes_while_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    train, _, _ = load(train_file=write(path, [{"prompt": "a", "answer": 1}]))
    with path.open("r+") as file:
        file.write(json.dumps({"prompt": "b", "answer": 1}))
    with pytest.raises(DataError, match=r"a.jsonl has changed since it was read"):
        train[0]


def test_templates_of_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("configs/models/countdown-0.5m")
    tokenizer.chat_template = TEMPLATE
    chatting = [{"role": "system", "content": "3"}, {"role": "user", "content": "1+1"}]
    rows = [{"prompt": "2+2", "answer": 4}, {"prompt": chatting[1:], "answer": 2}, {"prompt": chatting, "answer": 2}]
    path = write(tmp_path / "rows.jsonl", rows)

    def texts(**keys: Any) -> list[str]:
        config = DataConfig(train_file=path, **keys)
        template = chat_template(tokenizer, config.template_args)
        train, _ = load_prompts(config, seed=0, eval_size=0, encode=tokenizer.encode, chat=template)
        for p in train[1:]:
            assert list(p.token_ids) == tokenizer.encode(p.text, add_special_tokens=False)
        return [p.text for p in train]

    assert texts() == ["2+2", "u=1+1:a=", "s=3:u=1+1:a="]
    assert texts(chat=True) == ["u=2+2:a=", "u=1+1:a=", "s=3:u=1+1:a="]
    assert texts(system_prompt="7") == ["2+2", "s=7:u=1+1:a=", "s=3:u=1+1:a="]
    assert texts(chat=True, system_prompt="7")[0] == "s=7:u=2+2:a="
    assert texts(template_args={"short": True})[1] == "u=1+1:a=1"
    with pytest.raises(DataError, match="line 2: the chat template refuses the messages: no systems"):
        texts(system_prompt="no")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"the tokenizer in model\.path has no chat template"):
        texts(max_bad_rows=9)


def test_rows_that_two_sources_share_stay_two_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "answer": 1}])
    train, _, _ = load(train=[{"source": path}, {"source": path}, {"task": "arithmetic", "size": 2}] * 2)
    assert len({p.prompt_id for p in train}) == len(train) == 8
    assert len({p.prompt_id.partition("-")[0] for p in train}) == 3


def test_evaluation_takes_the_first_rows_of_each_source_by_weight(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"prompt": f"a{i}", "answer": 1} for i in range(9)])
    second = write(tmp_path / "b.jsonl", [{"prompt": f"b{i}", "answer": 1} for i in range(2)])
    entries = [{"source": first, "weight": 2}, {"source": second}]
    _, held_out, _ = load(eval_size=6, train_file=first, eval=entries)
    assert [p.text for p in held_out] == ["a0", "b0", "a1", "a2", "b1", "a3"]
    _, held_out, said = load(eval_size=9, train_file=first, eval=entries)
    assert [p.text for p in held_out] == ["a0", "b0", "a1", "a2", "b1", "a3", "a4", "a5"]
    assert said[-1] == (
        f"evaluation: {second}: 2 prompts, all that it has (eval.prompts = 9, of which 3 are its share)"
    )
    assert len(load(eval_size=10**6, train_file=first, eval_file=second)[1]) == 2
    _, held_out, _ = load(eval_size=1, train_file=first, eval=entries)
    assert [p.text for p in held_out] == ["a0"]


def test_a_task_among_the_sources() -> None:
    train, held_out, said = load(
        eval_size=4,
        train=[{"task": "countdown", "size": 5, "weight": 3}, {"task": "arithmetic", "task_args": {"terms": 2}}],
        eval=[{"task": "countdown"}],
        train_size=7,
    )
    assert Counter(p.source for p in train) == {"countdown": 5, "arithmetic": 7}
    assert {p.source for p in held_out} == {"countdown"}
    assert not {p.prompt_id for p in held_out} & {p.prompt_id for p in train}
    assert said == [
        "training: countdown: 5 prompts, 75.0% of the draws",
        "training: arithmetic: 7 prompts, 25.0% of the draws",
        "evaluation: countdown: 4 prompts",
    ]
    assert passes(train, 40) == "12 training prompts, passes: 6.00 of countdown, 1.43 of arithmetic"
    with pytest.raises(
        DataError, match=r"arithmetic with data.task_args = \{'terms': 1\}.*terms = 1 must be 2 or more"
    ):
        load(train=[{"task": "arithmetic", "task_args": {"terms": 1}}])


WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 3))
def test_shares_are_exact_after_each_round_and_never_ahead(weights: list[int], rounds: int) -> None:
    rotation, total = WeightedRoundRobin(weights), sum(weights)
    for count in range(1, rounds * total + 1):
        rotation.next()
        assert all(n * total < w * count + total for n, w in zip(rotation.drawn, weights, strict=True))
    assert rotation.drawn == [rounds * weight for weight in weights]


def test_weights_are_kept_exactly() -> None:
    assert integer_weights([{"weight": 0.1}, {"weight": 0.2}, {}]) == [1, 2, 10]
    assert integer_weights([{"weight": 4}, {"weight": 6}]) == [2, 3]


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_a_mixture_goes_on_where_it_was_saved(weights: list[int], seed: int, cursor: int) -> None:
    parts = [[prompt(f"{part}-{i}") for i in range(part + 1)] for part in range(len(weights))]
    mixture = Mixture(parts, [""] * len(parts), weights)
    stream = PromptStream(mixture, seed)
    before = stream.next(cursor)
    state = json.loads(json.dumps(stream.state_dict()))
    rest = stream.next(30)
    other = PromptStream(mixture, seed)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert other.next(30) == rest
    for index, part in enumerate(parts):  # each source in permutations of its own, without a gap
        own = [p.prompt_id for p in [*before, *rest] if p.prompt_id.startswith(f"{index}-")]
        for start in range(0, len(own) - len(part) + 1, len(part)):
            assert sorted(own[start : start + len(part)]) == sorted(p.prompt_id for p in part)


def test_a_position_under_other_weights_is_refused() -> None:
    parts = [[prompt("a")], [prompt("b")]]
    state = PromptStream(Mixture(parts, ["", ""], [1, 2]), 0).state_dict()
    PromptStream(Mixture(parts, ["x", ""], [1, 2]), 0).load_state_dict(state)
    with pytest.raises(DataError, match=r"data\.train with its weights"):
        PromptStream(Mixture(parts, ["", ""], [2, 1]), 0).load_state_dict(state)


class TestDatasets:
    """Folders and the cache of the datasets library, where it is installed."""

    def test_a_folder(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_list([VERL, {**VERL, "reward_model": {"style": "rule", "ground_truth": "3"}}])
        datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "both")
        rows.select([1, 0]).save_to_disk(tmp_path / "one")
        both = str(tmp_path / "both")
        train, held_out, _ = load(
            eval_size=1, train=[{"source": both, "split": "train"}], eval=[{"source": both, "split": "test"}]
        )
        assert [p.reference for p in train] == ["2", "3"]
        assert train[0].prompt_id == "721350edfc80e11f-1"
        assert [p.reference for p in held_out] == ["3"]
        assert [p.reference for p in load(train=[{"source": str(tmp_path / "one")}])[0]] == ["3", "2"]
        for entry, message in (
            ({"source": both}, r"has the splits train, test: choose one with `split`"),
            ({"source": both, "split": "dev"}, r"split = dev is none of its splits"),
            ({"source": str(tmp_path / "one"), "split": "dev"}, "has no splits: leave `split` out"),
            ({"source": str(tmp_path)}, "the folder cannot be loaded: save_to_disk"),
        ):
            with pytest.raises(DataError, match=message):
                load(train=[entry])

    def test_an_id_is_looked_up_in_the_cache_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        import huggingface_hub.constants as hub

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        with pytest.raises(
            DataError, match=r"someone/sums is neither a file nor a folder, and no dataset in the local"
        ):
            load(train=[{"source": "someone/sums"}])
        made = datasets.Dataset.from_list([{"prompt": "1+1=", "answer": 2}])
        folder = tmp_path / "someone___sums" / "default" / "0.0.0" / "0123abc"
        made.save_to_disk(tmp_path / "made")
        folder.mkdir(parents=True)
        (tmp_path / "made" / "data-00000-of-00001.arrow").rename(folder / "sums-train.arrow")
        info = datasets.DatasetInfo(
            features=made.features,
            builder_name="parquet",
            dataset_name="sums",
            config_name="default",
            version="0.0.0",
            splits=[{"name": "train", "num_examples": 1, "dataset_name": "sums"}],
        )
        info.write_to_directory(str(folder))
        train, _, _ = load(train=[{"source": "someone/sums", "split": "train"}])
        assert [(p.text, p.reference, p.source) for p in train] == [("1+1=", 2, "someone/sums")]
        assert (datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE) == (False, False)


def test_a_dry_run_shows_sources_rows_and_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"numbers": [3, 7, 2], "target": 13}
    rows = [{"prompt": "3 7 2=13:", "answer": answer}, {"prompt": "3 7 2=13:" * 9, "answer": answer}, "{"]
    path = write(tmp_path / "rows.jsonl", rows)
    settings = [
        *("data.task=null", f"data.train=[{{source: {path}, weight: 3}}, {{task: countdown, size: 50}}]"),
        *(f"data.eval=[{{source: {path}}}]", "eval.prompts=1", "data.overlong=drop", f"run.dir={tmp_path}"),
    ]
    assert main(["train", "configs/presets/demo.yaml", "--dry-run", *settings]) == 2
    assert "1 of 3 rows cannot be used:\n  line 3: not JSON" in capsys.readouterr().err
    assert main(["train", "configs/presets/demo.yaml", "--dry-run", *settings, "data.max_bad_rows=1"]) == 0
    shown = capsys.readouterr().out
    for line in (
        f"training: {path}: 1 prompts, 75.0% of the draws; left out: "
        "1 over data.max_prompt_tokens (line 2 has 81 tokens), "
        "1 bad rows (line 3: not JSON (",
        "training: countdown: 50 prompts, 25.0% of the draws",
        f"evaluation: {path}: 1 prompts",
        f"51 training prompts, passes: 3840.00 of {path}, 25.60 of countdown",
        "1 held-out prompts",
    ):
        assert line in shown
    # What is printed is settings again, sources and all.
    (tmp_path / "again.yaml").write_text(shown.partition("training: ")[0])
    again = load_config([tmp_path / "again.yaml"], []).config
    assert [entry.get("weight") for entry in again.data.train] == [3, None]
