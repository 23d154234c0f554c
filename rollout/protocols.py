"""Protocols of Ray's actor handles and of tokenizers, as far as `rollout/` uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from maxpo.runtime.ray_calls import RemoteMethod
from maxpo.types import Completion, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Completions of fixed prompts, to compare an engine with the learner and with itself."""

    prompts: tuple[tuple[int, ...], ...]
    together: tuple[Completion, ...]
    """Completion of each prompt, sampled at the same time."""
    alone: tuple[Completion, ...]
    """The same with the same seeds, one after the other."""


class WorkerHandle(Protocol):
    """The handle of a `rollout.worker.RolloutWorker` in an actor. `RolloutPool` calls further methods by name."""

    @property
    def start(self) -> RemoteMethod[int]:
        """Start the engine and return the process id."""
        ...

    @property
    def generate(self) -> RemoteMethod[Group]:
        """Sample a group."""
        ...

    @property
    def sign_of_life(self) -> RemoteMethod[None]:
        """Return when the engine's process answers."""
        ...

    @property
    def shutdown(self) -> RemoteMethod[None]:
        """End the processes of the engine and of the environments."""
        ...


class Tokenizer(Protocol):
    """A Hugging Face tokenizer, which has no complete types."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template. None: the tokenizer has none."""
        ...

    @property
    def eos_token(self) -> str | None:
        """Text of the end of sequence."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """Token of the end of sequence."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """Token of padding."""
        ...

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Return the id of every token."""
        ...

    def get_added_vocab(self) -> Mapping[str, int]:
        """Return the id of every token that is not split, special ones included."""
        ...

    def encode(self, text: str, **options: bool) -> list[int]:
        """Return the tokens of a text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of some tokens."""
        ...

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **options: object) -> str:
        """Return the text of a conversation."""
        ...
