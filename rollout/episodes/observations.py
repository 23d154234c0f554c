"""Observations as tokens between two turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rollout.protocols import Tokenizer


class ObservationEncoder:
    """Encodes an observation as the tokens that follow a turn of the policy."""

    def __init__(self, tokenizer: Tokenizer, role: str | None, template_args: Mapping[str, object]) -> None:
        """Find out what the chat template writes before and after an observation.

        Args:
            tokenizer: Tokenizer of the model.
            role: See `environment.observation_role`.
            template_args: See `data.template_args`.

        Raises:
            ValueError: `role` is given, but the tokenizer has no chat template, or one that hides the message.
        """
        self._tokenizer = tokenizer
        self._before = self._after = ""
        if role is None:
            return
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: set environment.observation_role to null")
        # Markers show which parts of the template's text surround an observation.
        turn, observation = "TURN-OF-THE-POLICY", "THE-OBSERVATION"
        messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": turn},
            {"role": role, "content": observation},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_args)
        _, turn_shown, rest = text.partition(turn)
        self._before, observation_shown, self._after = rest.partition(observation)
        if not turn_shown or not observation_shown:
            raise ValueError(f"the chat template does not show a message of the role {role!r} after a turn")

    def __call__(self, observation: str, turn: Sequence[int]) -> list[int]:
        """Return the tokens of an observation after the tokens of a turn.

        Text in the observation that looks like a special token is encoded as plain text.
        """
        before = self._before
        if turn and turn[-1] == self._tokenizer.eos_token_id:
            before = before.removeprefix(self._tokenizer.eos_token)  # the policy has written this token itself
        plain = self._tokenizer.encode(observation, add_special_tokens=False, split_special_tokens=True)
        return [*self._encode(before), *plain, *self._encode(self._after)]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []
