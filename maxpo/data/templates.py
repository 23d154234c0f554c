"""The date in chat templates, and the special tokens around text prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from functools import partial
from typing import Any

from maxpo.config import DataConfig


def today() -> str:
    """Return the date of now, as in `data.date`."""
    return datetime.now(UTC).date().isoformat()


def template_args(data: DataConfig) -> Mapping[str, Any]:
    """Return the arguments of the chat template: `data.template_args`, and a clock that stands still at `data.date`.

    transformers gives templates the function `strftime_now`, which an argument of this name replaces.
    """
    return {"strftime_now": partial(_strftime, data.date or today()), **data.template_args}


def _strftime(day: str, form: str) -> str:
    return datetime.combine(date.fromisoformat(day), time()).strftime(form)


def text_encoder(encode: Callable[..., Sequence[int]]) -> Callable[[str], Sequence[int]]:
    """Return a function that encodes a text prompt: with the special tokens that the tokenizer puts before a text.

    The special tokens are written once, even if the text begins with them. Those that the tokenizer puts after a text
    are left out, since the policy goes on where a prompt ends.

    Args:
        encode: Method `encode` of a Hugging Face tokenizer.
    """
    plain, added = list(encode("x", add_special_tokens=False)), list(encode("x"))
    starts = [i for i in range(len(added) - len(plain) + 1) if added[i : i + len(plain)] == plain]
    if not starts:
        raise ValueError(f"the tokenizer encodes x as {plain}, but as {added} with special tokens around it")
    before = added[: starts[0]]

    def tokens(text: str) -> list[int]:
        own = list(encode(text, add_special_tokens=False))
        return own if own[: len(before)] == before else before + own

    return tokens
