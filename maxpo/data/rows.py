"""Rows into prompts: their fields, ids and tokens, and the checks of each row."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, overload

from maxpo.data.tables import Table
from maxpo.errors import DataError, RunError
from maxpo.types import Prompt
from maxpo.wording import listed, shown

Given = TypeVar("Given")
Made = TypeVar("Made")
Encode = Callable[[str], Sequence[int]]
"""A tokenizer: text to token ids."""
Message = dict[str, Any]
"""A chat message with at least `role` and `content`."""
Chat = Callable[[Sequence[Message]], tuple[str, Sequence[int]]]
"""A chat template: messages to the text that the policy reads and its tokens. Raises ValueError if it refuses them."""

ANSWERS = ("answer", "reward_model.ground_truth", "reward_spec.ground_truth")
"""Fields of the answer unless `data.fields` names another: first MaxPO's own, then those of verl and of SkyRL."""
LONGEST_SOURCE = 200
SOURCE_NAME = f"at most {LONGEST_SOURCE} characters without line breaks and control characters"
_ROLES = ("system", "user", "assistant", "tool")
_SHOWN = 10
"""Number of bad rows that a message lists one by one."""
_LONGEST = 200
"""Number of characters of each of these messages."""


def _no_template(messages: Sequence[Message]) -> tuple[str, Sequence[int]]:
    raise DataError(
        "the tokenizer in model.path has no chat template, which prompts that are messages (and data.chat) need: take "
        "a model with one, or rows whose prompts are text"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Settings and functions that turn the rows of a run into prompts."""

    encode: Encode
    chat: Chat = _no_template
    as_chat: bool
    """True to send text as a user's message."""
    system_prompt: str | None
    max_tokens: int
    drop_overlong: bool
    max_bad_rows: int
    check: Callable[[object, str], None] = lambda reference, source: None
    """Raises ValueError if the verifier of the source cannot use the reference of a row."""

    def tokenize(self, prompt: str | list[Message]) -> tuple[str, tuple[int, ...]]:
        """Return the text that the policy reads, and its tokens.

        Raises:
            ValueError: The prompt has no tokens, or template or tokenizer fail on it.
        """
        if isinstance(prompt, str) and not self.as_chat:
            text, tokens = prompt, _guarded("tokenizer", self.encode, prompt)
        else:
            messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if self.system_prompt is not None and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": self.system_prompt}, *messages]
            text, tokens = _guarded("chat template or tokenizer", self.chat, messages)
        if not tokens:
            raise ValueError("the prompt has no tokens")
        return text, tuple(tokens)


def _guarded(name: str, function: Callable[[Given], Made], given: Given) -> Made:
    """Call a function that comes with the model and may raise anything.

    Raises:
        ValueError: The function raised. An error in words is raised as it is.
    """
    try:
        return function(given)
    except (ValueError, RunError, KeyboardInterrupt, SystemExit):
        raise
    # A tokenizer in Rust that panics raises no `Exception`.
    except BaseException as error:
        raise ValueError(f"the {name} of the model fails: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of a row that count."""

    prompt: str | list[Message]
    answer: object
    source: str | None

    @property
    def digest(self) -> str:
        """Hash of prompt and answer, the same for every file format."""
        return hashlib.sha256(json.dumps([self.prompt, self.answer], sort_keys=True).encode()).hexdigest()[:16]


def columns(fields: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the columns in which `parse` looks for prompt, answer and source: the first parts of the field names."""
    answers = [fields["answer"]] if "answer" in fields else ANSWERS
    names = {"prompt": [fields.get("prompt", "prompt")], "answer": answers}
    names["source"] = [fields.get("source", "data_source")]
    return {what: [name.partition(".")[0] for name in options] for what, options in names.items()}


def is_source(name: str) -> bool:
    """Return True if the text can be the name of a source, which is a part of the names of metrics."""
    return name.isprintable() and len(name) <= LONGEST_SOURCE


def parse(row: object, fields: Mapping[str, str]) -> Row:
    """Return the fields of a row that count.

    Args:
        row: Content of the row, or the ValueError of a line that cannot be read.
        fields: Names of the fields `prompt`, `answer` and `source`, as `data.fields`.

    Raises:
        ValueError: The row cannot be used. The message names the field.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError("expected an object with `prompt` and `answer`")
    known = cast("dict[str, object]", row)
    prompt, answer = _prompt(known, fields.get("prompt", "prompt")), _answer(known, fields)
    name = fields.get("source", "data_source")
    _, source = _look_up(known, name)
    if source is not None and not isinstance(source, str):
        raise ValueError(f"field `{name}` must be text, not {source!r}")
    if source is not None and not is_source(source):
        raise ValueError(f"field `{name}` must be {SOURCE_NAME}, not {source!r}")
    return Row(prompt, answer, source)


def _prompt(row: Mapping[str, object], name: str) -> str | list[Message]:
    exists, prompt = _look_up(row, name)
    if not exists:
        raise ValueError(f"field `{name}` is missing; the row has {listed(sorted(row))}")
    if isinstance(prompt, str) and prompt:
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f"field `{name}` must be a non-empty string, or a list of chat messages")
    messages = [_message(name, number, value) for number, value in enumerate(cast("list[object]", prompt), start=1)]
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"field `{name}`: the last message is the assistant's, which the policy is to write")
    return messages


def _answer(row: Mapping[str, object], fields: Mapping[str, str]) -> object:
    names = [fields["answer"]] if "answer" in fields else ANSWERS
    options = [(name, *_look_up(row, name)) for name in names]
    present = [(name, value) for name, exists, value in options if exists]
    if not present:
        raise ValueError(f"field `{names[0]}` is missing; the row has {listed(sorted(row))}")
    # A table has every column in every row, so null in one column may mean that another has the answer.
    name, value = next(((name, value) for name, value in present if value is not None), present[0])
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"field `{name}` must be a JSON value: {error}") from error
    return value


def _look_up(row: Mapping[str, object], name: str) -> tuple[bool, object]:
    """Return True and the value if the field exists, else False and None. A dot in the name leads into a field."""
    value: object = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = cast("Mapping[str, object]", value)[part]
    return True, value


def _message(name: str, number: int, value: object) -> Message:
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
class Summary:
    """Numbers of the rows of one source, and the first wrong ones."""

    rows: int = 0
    bad: int = 0
    overlong: int = 0
    first_bad: list[str] = field(default_factory=list[str])
    """The first bad rows, each with its error."""
    first_overlong: str = ""
    """The first row with too many tokens."""

    def add_bad(self, where: str, error: ValueError) -> None:
        """Count a row that cannot be used."""
        self.bad += 1
        if self.bad <= _SHOWN:
            self.first_bad.append(f"{where}: {shown(str(error), _LONGEST)}")

    def add_overlong(self, where: str, tokens: int) -> None:
        """Count a row with too many tokens."""
        self.overlong += 1
        self.first_overlong = self.first_overlong or f"{where} has {tokens} tokens"


class Rows(Sequence[Prompt]):
    """The usable rows of a table as prompts, which are made when they are drawn.

    All rows are read and tokenized once, so that every error is known before anything starts. 20 bytes of each row
    stay in memory: its key in the table, its digest, and how often the digest has come before.
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
        """Read the table.

        Args:
            table: The rows.
            name: Name of the table in messages.
            stem: `source` of prompts whose rows have none.
            fields: See `parse`.
            reader: Makes prompts.
            seen: Number of earlier rows with each digest. Counted on.
            limit: Number of usable rows after which reading stops. None: all rows.

        Raises:
            DataError: More rows are wrong than `data.max_bad_rows` allows, or a prompt is too long.
        """
        self._table, self._name, self._stem, self._fields, self._reader = table, name, stem, fields, reader
        self._keys, self._digests, self._repeats = array("Q"), array("Q"), array("I")
        self.summary = Summary()
        fingerprint = hashlib.sha256()
        for key, where, content in table.scan():
            if limit is not None and len(self) >= limit:
                break
            self.summary.rows += 1
            usable = self._check(where, content)
            if usable is None:
                continue
            digest, tokens = usable
            seen[digest] += 1
            self._keys.append(key)
            self._digests.append(int(digest, 16))
            self._repeats.append(seen[digest])
            fingerprint.update(json.dumps([f"{digest}-{seen[digest]}", tokens]).encode())
        self.fingerprint = fingerprint.hexdigest()
        """Hash of all ids in their order, with their tokens."""
        self._raise_if_wrong()

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            row = parse(self._table.read(self._keys[index]), self._fields)
        except ValueError as error:
            raise DataError(f"{self._name} has changed since it was read: {error}") from error
        digest = f"{self._digests[index]:016x}"
        if row.digest != digest:
            raise DataError(f"{self._name} has changed since it was read: keep it as it is while a run uses it")
        text, tokens = self._reader.tokenize(row.prompt)
        return Prompt(
            prompt_id=f"{digest}-{self._repeats[index]}",
            text=text,
            token_ids=tokens,
            reference=row.answer,
            source=row.source or self._stem,
        )

    def _check(self, where: str, content: object) -> tuple[str, tuple[int, ...]] | None:
        """Return digest and tokens of a row. None: it is not usable, and counted in the summary."""
        try:
            row = parse(content, self._fields)
            _, tokens = self._reader.tokenize(row.prompt)
            self._reader.check(row.answer, row.source or self._stem)
        except DataError:
            raise
        except ValueError as error:
            self.summary.add_bad(where, error)
            return None
        if len(tokens) > self._reader.max_tokens:
            self.summary.add_overlong(where, len(tokens))
            return None
        return row.digest, tokens

    def _raise_if_wrong(self) -> None:
        """Raise DataError unless the unusable rows may be left out, and others remain."""
        rows, reader = self.summary, self._reader
        if rows.bad > reader.max_bad_rows:
            more = f"\n  and {rows.bad - _SHOWN} more" if rows.bad > _SHOWN else ""
            shown = "\n  ".join(rows.first_bad) + more
            allowed = f" (data.max_bad_rows = {reader.max_bad_rows})" if reader.max_bad_rows else ""
            raise DataError(f"{self._name}: {rows.bad} of {rows.rows} rows cannot be used{allowed}:\n  {shown}")
        if rows.overlong and not reader.drop_overlong:
            raise DataError(
                f"{self._name}: {rows.first_overlong}, allowed is data.max_prompt_tokens = {reader.max_tokens}; "
                f"{rows.overlong} of {rows.rows} prompts are longer: raise it, or leave them out with "
                "data.overlong=drop"
            )
        if not rows.rows:
            raise DataError(f"{self._name}: no rows")
        if not self:
            raise DataError(f"{self._name}: none of its {rows.rows} rows can be used: {left_out(rows)}")


def left_out(rows: Summary) -> str:
    """Return a note about the rows that were left out. Empty if there are none."""
    words: list[str] = []
    if rows.overlong:
        words.append(f"{rows.overlong} over data.max_prompt_tokens ({rows.first_overlong})")
    if rows.bad:
        words.append(f"{rows.bad} bad rows ({rows.first_bad[0]})")
    return "left out: " + ", ".join(words) if words else ""
