"""Faults of tokenizers and chat templates that are told before anything starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from launch.run.preflight import check_model, load_data
from maxpo.config import Config
from maxpo.configure.loading import load_config
from maxpo.errors import InputError

ROOT = Path(__file__).parents[3]
NO_EVAL = ("eval.every=0", "eval.at_start=false", "eval.at_end=false")
DEMO = ROOT / "configs/models/countdown-0.5m"


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """A function that returns settings with a copy of the demo's model, whose files may be changed."""
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)

    def load(*overrides: str) -> Config:
        return load_config([ROOT / "configs/presets/demo.yaml"], [f"model.path={model}", *overrides]).config

    return load


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_tokens_that_the_model_lacks_are_named(tmp_path: Path, configured: Callable[..., Config]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_tokens(["<tool>", "<more>"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"has 2 tokens that the model's vocabulary of 64 lacks: '<tool>' = 64, '<mor"):
        check_model(configured())


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "[" * 3000, '{"eos_token_id": "x"}', '{"eos_token_id": [[1]]}']
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_of_the_model_is_told(
    name: str, text: str, tmp_path: Path, configured: Callable[..., Config]
) -> None:
    config = configured()
    (tmp_path / "model" / name).write_text(text)
    if name == "tokenizer_config.json" and text.startswith("{"):
        return  # not where a tokenizer has its end of sequence
    with pytest.raises(InputError, match=rf"model\.path = .* cannot be loaded|{name} must hold one JSON object"):
        check_model(config)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_model_without_a_tokenizer_is_told(kind: str, tmp_path: Path, configured: Callable[..., Config]) -> None:
    config = configured()
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    rewrite(tmp_path / "model/config.json", model_type=kind)
    with pytest.raises(InputError, match=r"has no tokenizer|cannot be loaded"):
        check_model(config)


def test_stop_tokens_of_the_generation_config_are_enough(tmp_path: Path, configured: Callable[..., Config]) -> None:
    config = configured()
    rewrite(tmp_path / "model/tokenizer_config.json", eos_token=None)
    (tmp_path / "model/special_tokens_map.json").unlink(missing_ok=True)
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert check_model(config).eos_token_id is None  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "model/generation_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"neither the tokenizer nor generation_config\.json has an end-of-sequence"):
        check_model(config)


@pytest.mark.parametrize(
    ("prompt", "template", "message"),
    [
        ("3\ud800", None, "line 1: the tokenizer of the model fails: TypeError"),
        ([{"role": "user", "content": "3"}], "{{ messages + 3 }}", "line 1: the chat template fails: TypeError"),
        ([{"role": "user", "content": "3"}], "{{ messages[0].content.x.y }}", "line 1: the chat template refuses"),
    ],
)
def test_rows_on_which_tokenizer_or_template_fail_are_named(
    prompt: object, template: str | None, message: str, tmp_path: Path, configured: Callable[..., Config]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": prompt, "answer": "3"}) + "\n")
    if template is not None:
        rewrite(tmp_path / "model/tokenizer_config.json", chat_template=template)
    files = [f"data.train_file={tmp_path}/rows.jsonl", f"data.eval_file={tmp_path}/rows.jsonl", "data.task=null"]
    with pytest.raises(InputError, match=message):
        load_data(configured(*files, "eval.prompts=1"))


def test_special_tokens_that_end_no_turn_may_be_stop_texts(tmp_path: Path, configured: Callable[..., Config]) -> None:
    game = ["environment.name=calculator", "reward.verifier=environment", "environment.observation_role=null"]
    check_model(configured(*game, "environment.stop=['<bos>']"))
    with pytest.raises(InputError, match=r"environment\.stop: <eos> ends a turn by itself"):
        check_model(configured(*game, "environment.stop=['<eos>']"))


def test_a_prompt_that_opens_the_thinking_block_is_told(tmp_path: Path, configured: Callable[..., Config]) -> None:
    row = {"prompt": [{"role": "user", "content": "3"}], "answer": "3"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = configured(f"data.train_file={tmp_path}/rows.jsonl", "data.task=null", "reward.verifier=format", *NO_EVAL)
    rewrite(tmp_path / "model/tokenizer_config.json", chat_template="{{ messages[0].content }}")
    load_data(config)
    rewrite(tmp_path / "model/tokenizer_config.json", chat_template="{{ messages[0].content + '<think>\n' }}")
    with pytest.raises(InputError, match=r"prompts already end with <think>.*reward\.args\.format\.opening=''"):
        load_data(config)
    config.reward.args["format"] = {"opening": ""}
    load_data(config)
