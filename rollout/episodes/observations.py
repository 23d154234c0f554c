"""Observations as tokens between two turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ObservationEncoder:
    """Writes observations as the tokens that follow a turn."""

    def __init__(self, tokenizer: Any, role: str | None, template_args: Mapping[str, Any]) -> None:
        """Take the tokenizer apart.

        Args:
            tokenizer: of the model.
            role: see `environment.observation_role`.
            template_args: see `data.template_args`.

        Raises:
            ValueError: a role is wanted, but the tokenizer has no chat template, or one that hides the message.
        """
        self._tokenizer = tokenizer
        self._before = self._after = ""
        if role is None:
            return
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: set environment.observation_role to null")
        turn, observation = "TURN-OF-THE-POLICY", "THE-OBSERVATION"
        messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": turn},
            {"role": role, "content": observation},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_args)
        _, found, rest = text.partition(turn)
        self._before, shown, self._after = rest.partition(observation)
        if not found or not shown:
            raise ValueError(f"the chat template does not show a message of the role {role!r} after a turn")

    def __call__(self, observation: str, turn: Sequence[int]) -> list[int]:
        """The tokens of an observation after this turn. What looks like a special token in it is plain text."""
        before = self._before
        if turn and turn[-1] == self._tokenizer.eos_token_id:
            before = before.removeprefix(self._tokenizer.eos_token)  # the policy has written it
        plain = self._tokenizer.encode(observation, add_special_tokens=False, split_special_tokens=True)
        return [*self._encode(before), *plain, *self._encode(self._after)]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []
