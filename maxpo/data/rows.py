"""Rows into prompts: which fields count, what a prompt may be, its id, and the tokens that the policy reads."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from maxpo.data.tables import Table
from maxpo.errors import DataError
from maxpo.types import Prompt

Encode = Callable[[str], Sequence[int]]
"""A tokenizer: text to token ids."""
Message = dict[str, Any]
"""A chat message with at least `role` and `content`."""
Chat = Callable[[Sequence[Message]], tuple[str, Sequence[int]]]
"""A chat template: messages to the text that the policy reads and its tokens; ValueError where it refuses them."""

ANSWERS = ("answer", "reward_model.ground_truth", "reward_spec.ground_truth")
"""Where the answer is unless `data.fields` says otherwise: our own place, then those of verl and of SkyRL."""
_ROLES = ("system", "user", "assistant", "tool")
_SHOWN = 10
"""Problems of rows that a message tells one by one."""


def _no_template(messages: Sequence[Message]) -> tuple[str, Sequence[int]]:
    raise DataError(
        "the tokenizer in model.path has no chat template, which prompts that are messages (and data.chat) need: take "
        "a model with one, or rows whose prompts are text"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How the rows of a run become prompts."""

    encode: Encode
    chat: Chat = _no_template
    as_chat: bool
    """Text is sent as a user's message."""
    system_prompt: str | None
    max_tokens: int
    drop_overlong: bool
    max_bad_rows: int

    def tokenize(self, prompt: str | list[Message]) -> tuple[str, tuple[int, ...]]:
        """What the policy reads, and its tokens.

        Raises:
            ValueError: there are none, or the template refuses the messages.
        """
        if isinstance(prompt, str) and not self.as_chat:
            text, tokens = prompt, self.encode(prompt)
        else:
            messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if self.system_prompt is not None and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self.system_prompt}, *messages]
            text, tokens = self.chat(messages)
        if not tokens:
            raise ValueError("the prompt has no tokens")
        return text, tuple(tokens)


@dataclass(frozen=True, slots=True)
class Row:
    """What counts of a row."""

    prompt: str | list[Message]
    answer: Any
    source: str | None

    @property
    def digest(self) -> str:
        """Hash of what counts: the same in a file of any format."""
        return hashlib.sha256(json.dumps([self.prompt, self.answer], sort_keys=True).encode()).hexdigest()[:16]


def columns(fields: Mapping[str, str]) -> dict[str, list[str]]:
    """Where `parse` may find each of prompt, answer and source: the first parts of the names."""
    answers = [fields["answer"]] if "answer" in fields else ANSWERS
    names = {"prompt": [fields.get("prompt", "prompt")], "answer": answers}
    names["source"] = [fields.get("source", "data_source")]
    return {what: [name.partition(".")[0] for name in places] for what, places in names.items()}


def parse(row: Any, fields: Mapping[str, str]) -> Row:
    """Reads a row.

    Args:
        row: what the file has.
        fields: where `prompt`, `answer` and `source` are, as `data.fields`.

    Raises:
        ValueError: it cannot be used; the message names the field.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError("expected an object with `prompt` and `answer`")
    known = cast("dict[str, Any]", row)
    name = fields.get("prompt", "prompt")
    found, prompt = _look_up(known, name)
    if not found:
        raise ValueError(f"field `{name}` is missing; the row has {sorted(known)}")
    if isinstance(prompt, list) and prompt:
        prompt = [_message(name, number, value) for number, value in enumerate(cast("list[Any]", prompt), start=1)]
        if prompt[-1]["role"] == "assistant":
            raise ValueError(f"field `{name}`: the last message is the assistant's, which the policy is to write")
    elif not isinstance(prompt, str) or not prompt:
        raise ValueError(f"field `{name}` must be a non-empty string, or a list of chat messages")
    answer = _answer(known, fields)
    name = fields.get("source", "data_source")
    _, source = _look_up(known, name)
    if source is not None and not isinstance(source, str):
        raise ValueError(f"field `{name}` must be text, not {source!r}")
    return Row(prompt, answer, source)


def _answer(row: dict[str, Any], fields: Mapping[str, str]) -> Any:
    names = [fields["answer"]] if "answer" in fields else ANSWERS
    places = [(name, *_look_up(row, name)) for name in names]
    there = [(name, value) for name, found, value in places if found]
    if not there:
        raise ValueError(f"field `{names[0]}` is missing; the row has {sorted(row)}")
    # A table has every column in every row: what is null there may be somewhere else.
    name, value = next(((name, value) for name, value in there if value is not None), there[0])
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"field `{name}` must be a JSON value: {error}") from error
    return value


def _look_up(row: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether there is such a field, and its value; each dot in the name goes into the field before it."""
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = cast("dict[str, Any]", value)[part]
    return True, value


def _message(name: str, number: int, value: Any) -> Message:
    where = f"field `{name}`, message {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object with `role` and `content`")
    message = {key: part for key, part in cast("Message", value).items() if part is not None}
    if message.get("role") not in _ROLES:
        raise ValueError(f"{where}: `role` must be one of {', '.join(_ROLES)}, not {message.get('role')!r}")
    if not isinstance(message.get("content"), str):
        raise ValueError(f"{where}: `content` must be text")
    try:
        json.dumps(message)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: must hold JSON values: {error}") from error
    return message


@dataclass(slots=True)
class Findings:
    """What was found in the rows of one source."""

    rows: int = 0
    bad: int = 0
    overlong: int = 0
    first_bad: list[str] = field(default_factory=list[str])
    """The first bad rows with what is wrong; `first_overlong` likewise."""
    first_overlong: str = ""


class Rows(Sequence[Prompt]):
    """The usable rows of a table as prompts, which are made when they are asked for.

    All rows are read and tokenized once, so that everything that is wrong is known before anything starts. What stays
    in memory of each is 20 bytes: where it is, and the start and number of its id.
    """

    def __init__(
        self,
        table: Table,
        name: str,
        stem: str,
        fields: Mapping[str, str],
        reader: Reader,
        seen: Counter[str],
        *,
        limit: int | None = None,
    ) -> None:
        """Reads the table.

        Args:
            table: the rows.
            name: what messages call it.
            stem: `source` of prompts whose rows do not say theirs.
            fields: see `parse`.
            reader: makes prompts.
            seen: how often each digest has come before; counted on.
            limit: stop after so many usable rows.

        Raises:
            DataError: rows that cannot be used, more than are allowed.
        """
        self._table, self._name, self._stem, self._fields, self._reader = table, name, stem, fields, reader
        self._keys, self._digests, self._repeats = array("Q"), array("Q"), array("I")
        self.findings = found = Findings()
        fingerprint = hashlib.sha256()
        for key, where, content in table.scan():
            if limit is not None and len(self) >= limit:
                break
            found.rows += 1
            try:
                row = parse(content, fields)
                _, tokens = reader.tokenize(row.prompt)
            except DataError:
                raise
            except ValueError as error:
                found.bad += 1
                if found.bad <= _SHOWN:
                    found.first_bad.append(f"{where}: {error}")
                continue
            if len(tokens) > reader.max_tokens:
                found.overlong += 1
                found.first_overlong = found.first_overlong or f"{where} has {len(tokens)} tokens"
                continue
            digest = row.digest
            seen[digest] += 1
            self._keys.append(key)
            self._digests.append(int(digest, 16))
            self._repeats.append(seen[digest])
            fingerprint.update(json.dumps([f"{digest}-{seen[digest]}", tokens]).encode())
        self.fingerprint = fingerprint.hexdigest()
        """Hash of all ids in their order, with their tokens."""
        self._judge(found)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position: int = index
        try:
            row = parse(self._table.read(self._keys[position]), self._fields)
        except ValueError as error:
            raise DataError(f"{self._name} has changed since it was read: {error}") from error
        digest = f"{self._digests[position]:016x}"
        if row.digest != digest:
            raise DataError(f"{self._name} has changed since it was read: keep it as it is while a run uses it")
        text, tokens = self._reader.tokenize(row.prompt)
        return Prompt(
            prompt_id=f"{digest}-{self._repeats[position]}",
            text=text,
            token_ids=tokens,
            reference=row.answer,
            source=row.source or self._stem,
        )

    def _judge(self, found: Findings) -> None:
        """Whether what is left out may be left out."""
        if found.bad > self._reader.max_bad_rows:
            more = f"\n  and {found.bad - _SHOWN} more" if found.bad > _SHOWN else ""
            shown = "\n  ".join(found.first_bad) + more
            allowed = f" (data.max_bad_rows = {self._reader.max_bad_rows})" if self._reader.max_bad_rows else ""
            raise DataError(f"{self._name}: {found.bad} of {found.rows} rows cannot be used{allowed}:\n  {shown}")
        if found.overlong and not self._reader.drop_overlong:
            raise DataError(
                f"{self._name}: {found.first_overlong}, allowed is data.max_prompt_tokens = {self._reader.max_tokens}; "
                f"{found.overlong} of {found.rows} prompts are longer: raise it, or leave them out with "
                "data.overlong=drop"
            )
        if not found.rows:
            raise DataError(f"{self._name}: no rows")
        if not self:
            raise DataError(f"{self._name}: none of its {found.rows} rows can be used: {said(found)}")


def said(found: Findings) -> str:
    """What was left out, in words; empty if nothing was."""
    words: list[str] = []
    if found.overlong:
        words.append(f"{found.overlong} over data.max_prompt_tokens ({found.first_overlong})")
    if found.bad:
        words.append(f"{found.bad} bad rows ({found.first_bad[0]})")
    return "left out: " + ", ".join(words) if words else ""
