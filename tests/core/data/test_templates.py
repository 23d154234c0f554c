"""Special tokens around text prompts, and the date in chat templates."""

from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.run.preflight import chat_template
from launch.run.resuming import with_date
from maxpo.config import DataConfig
from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.problems import ConfigError
from maxpo.configure.writing import to_yaml
from maxpo.data import templates
from maxpo.data.templates import template_args, text_encoder
from tests.families import FAMILIES, build


@pytest.mark.parametrize("name", FAMILIES)
def test_text_prompts_begin_once_and_do_not_end(name: str) -> None:
    tokenizer, family = build(name), FAMILIES[name]
    encode = text_encoder(tokenizer.encode)
    plain = tokenizer.encode("the 42", add_special_tokens=False)
    added = [tokenizer.convert_tokens_to_ids(text) for text in family.adds.partition("$A")[0].split()]
    assert encode("the 42") == [*added, *plain]
    start = family.adds.partition("$A")[0].replace(" ", "")
    again = encode(f"{start}the 42")
    assert again[: len(added)] == added
    assert [i for i in again if i in tokenizer.get_added_vocab().values()] == added


def test_chat_prompts_have_the_special_tokens_of_the_template() -> None:
    tokenizer = build("mistral")
    chat = chat_template(tokenizer, {})
    assert chat is not None
    _, tokens = chat([{"role": "user", "content": "42"}])
    assert list(tokens).count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in tokens


def test_a_tokenizer_that_changes_the_text_between_its_special_tokens_is_refused() -> None:
    def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1, 2] if add_special_tokens else [3]

    with pytest.raises(ValueError, match="with special tokens around it"):
        text_encoder(encode)


DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"


def test_templates_read_the_date_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build("llama")
    tokenizer.chat_template = DATED
    arguments = pickle.loads(pickle.dumps(template_args(DataConfig(date="2026-01-31"))))  # as for rollout workers
    chat = chat_template(tokenizer, arguments)
    assert chat is not None
    assert chat([{"role": "user", "content": "x"}])[0] == "31 Jan 2026x"
    monkeypatch.setattr(templates, "today", lambda: "2026-02-01")
    chat = chat_template(tokenizer, template_args(DataConfig()))
    assert chat is not None
    assert chat([{"role": "user", "content": "x"}])[0] == "01 Feb 2026x"


def loaded(folder: Path, *overrides: str) -> LoadedConfig:
    root = Path(__file__).parents[3]
    named = [f"run.dir={folder}", f"model.path={root}/configs/models/countdown-0.5m", *overrides]
    return load_config([root / "configs/presets/demo.yaml"], named)


def test_a_run_keeps_its_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def day(*overrides: str) -> Any:
        dated = with_date(loaded(tmp_path, "run.name=r", *overrides))
        assert yaml.safe_load(to_yaml(dated))["data"]["date"] == dated.config.data.date
        return dated.config.data.date

    assert day() == templates.today()
    assert day("data.date=2026-01-31") == "2026-01-31"
    assert date.fromisoformat(day("checkpoint.resume=auto"))
    folder = tmp_path / "r"
    folder.mkdir()
    first = with_date(loaded(tmp_path, "run.name=r", "data.date=2026-01-31"))
    (folder / "config.yaml").write_text(to_yaml(first))
    assert day("checkpoint.resume=auto") == "2026-01-31"
    assert day("checkpoint.resume=must") == "2026-01-31"
    assert load_config([folder / "config.yaml"], []).config.data.date == "2026-01-31"
    assert day("checkpoint.resume=auto", "data.date=2026-02-01") == "2026-02-01"
    assert day() == templates.today()


@pytest.mark.parametrize("text", ["today", "2026-13-01", "20260131"])
def test_dates_are_checked(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Must be a date such as"):
        loaded(tmp_path, f"data.date='{text}'")
