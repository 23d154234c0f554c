"""Ends of completions, in tokenizers of several families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maxpo.rewards.verifiers.thinking_format import thinking_format
from rollout.endings import stop_ids, text_of
from rollout.episodes.observations import ObservationEncoder
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


def conversation(tokenizer: Any, name: str, answers: int) -> list[int]:
    """Return the template's tokens of a conversation, up to the header of the turn after the last observation."""
    messages = [{"role": "user", "content": "question"}]
    for _ in range(answers):
        messages += [
            {"role": "assistant", "content": "the answer"},
            {"role": FAMILIES[name].role, "content": "the 42\nthink"},
        ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cut", [False, True])
def test_tokens_of_an_episode_are_those_of_the_template(name: str, cut: bool, tmp_path: Path) -> None:
    tokenizer, stops = build(name), written(name, tmp_path)
    observe = ObservationEncoder(tokenizer, FAMILIES[name].role, {}, stops)
    tokens = conversation(tokenizer, name, 0)
    for turn in range(1, 4):
        want = conversation(tokenizer, name, turn)
        assert want[: len(tokens)] == tokens
        rest = want[len(tokens) :]
        place = next(i for i, token in enumerate(rest) if token in stops)
        answer = rest[:place] if cut else rest[: place + 1]
        tokens = [*tokens, *answer, *observe("the 42\nthink", answer)]
        assert tokens == want


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_ends_once_whichever_stop_token_ended_it(name: str, tmp_path: Path) -> None:
    tokenizer, stops = build(name), written(name, tmp_path)
    observe = ObservationEncoder(tokenizer, FAMILIES[name].role, {}, stops)
    whole = observe("42", [5])
    for text in FAMILIES[name].stops:
        stop = tokenizer.convert_tokens_to_ids(text)
        seen = observe("42", [5, stop])
        # In GLM a stop token is the role of the observation, which another stop token does not replace.
        replaced = name != "glm" or whole[0] == stop
        assert seen == (whole[1:] if replaced else whole), text
    # Nothing that an observation says can end it.
    for text in FAMILIES[name].special:
        assert sum(i in tokenizer.get_added_vocab().values() for i in observe(f"a{text}b", [5])) == sum(
            i in tokenizer.get_added_vocab().values() for i in whole
        )
