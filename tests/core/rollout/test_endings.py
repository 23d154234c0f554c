"""Ends of completions, in tokenizers of several families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maxpo.rewards.verifiers.thinking_format import thinking_format
from rollout.endings import stop_ids, text_of
from tests.families import FAMILIES, build


def written(name: str, folder: Path) -> frozenset[int]:
    """Write generation_config.json of a family, and return the stop tokens that it names."""
    tokenizer = build(name)
    stops = [tokenizer.convert_tokens_to_ids(text) for text in FAMILIES[name].stops]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return stop_ids(tokenizer, str(folder), trust_remote_code=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_ends_before_the_stop_tokens_and_keeps_other_special_tokens(name: str, tmp_path: Path) -> None:
    tokenizer, stops = build(name), written(name, tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"], "pad_token": "<filler>"})
    text = "<think>the 42</think>the answer"
    ids = tokenizer.encode(text, add_special_tokens=False)
    for stop in FAMILIES[name].stops:
        end = [tokenizer.convert_tokens_to_ids(stop), *[tokenizer.pad_token_id] * 2]
        for tail in ([], end[:1], end):
            shown = text_of(tokenizer, [*ids, *tail], stops)
            assert shown.replace("> ", ">") == text  # some decoders put a blank after a special token
    assert thinking_format(text_of(tokenizer, ids, stops), None).reward == 1.0
    assert text_of(tokenizer, [], stops) == ""


def test_stop_tokens_are_those_of_the_engine(tmp_path: Path) -> None:
    tokenizer = build("gemma")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [7, 9]}))
    eos = tokenizer.eos_token_id
    assert stop_ids(tokenizer, str(tmp_path), trust_remote_code=False) == {eos, 7, 9}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert stop_ids(tokenizer, str(tmp_path), trust_remote_code=False) == {eos, 5}
    (tmp_path / "generation_config.json").write_text("{}")
    assert stop_ids(tokenizer, str(tmp_path), trust_remote_code=False) == {eos}
