"""Observations as tokens between two turns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rollout.protocols import Tokenizer

_TURN, _OBSERVATION = "TURN-OF-THE-POLICY", "THE-OBSERVATION"
"""Markers that show which parts of the template's text surround an observation."""


class ObservationEncoder:
    """Encodes an observation as the tokens that follow a turn of the policy."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        role: str | None,
        template_args: Mapping[str, object],
        stops: Collection[int],
    ) -> None:
        """Find out what the chat template writes before and after an observation.

        Args:
            tokenizer: Tokenizer of the model.
            role: See `environment.observation_role`.
            template_args: See `maxpo.data.templates.template_args`.
            stops: Tokens that end a turn, see `rollout.endings.stop_ids`.

        Raises:
            ValueError: `role` is given, but the tokenizer has no chat template, or one that hides the message.
        """
        self._tokenizer, self._stops = tokenizer, stops
        self._before = self._after = ""
        self._ends_turns = False
        if role is None:
            return
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: set environment.observation_role to null")
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _TURN}]
        messages = [*turns, {"role": role, "content": _OBSERVATION}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template_args)
        _, turn_shown, rest = text.partition(_TURN)
        self._before, observation_shown, self._after = rest.partition(_OBSERVATION)
        if not turn_shown or not observation_shown:
            raise ValueError(f"the chat template does not show a message of the role {role!r} after a turn")
        last = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, **template_args)
        # An end is written after the last turn too. Otherwise the token begins the observation, as in GLM.
        ends = [self._first_stop(self._encode(text)) for text in (self._before, last.partition(_TURN)[2])]
        self._ends_turns = ends[0] is not None and ends[0] == ends[1]

    def __call__(self, observation: str, turn: Sequence[int]) -> list[int]:
        """Return the tokens of an observation after the tokens of a turn.

        The tokens are those of the template's text, without the end of the turn if the policy has written one. Text in
        the observation that looks like a special token is encoded as plain text.
        """
        before, after = self._encode(self._before), self._encode(self._after)
        tokens = self._encode(self._before + observation + self._after)
        added = set(self._tokenizer.get_added_vocab().values())
        if [i for i in tokens if i in added] != [i for i in (*before, *after) if i in added]:
            plain = self._tokenizer.encode(observation, add_special_tokens=False, split_special_tokens=True)
            tokens = [*before, *plain, *after]
        return tokens[self._written(before, turn) :]

    def _written(self, before: Sequence[int], turn: Sequence[int]) -> int:
        """Return how many tokens of the template the policy has written itself at the end of a turn."""
        first = self._first_stop(before)
        if first is None or not turn or turn[-1] not in self._stops:
            return 0
        return first + 1 if self._ends_turns or before[first] == turn[-1] else 0

    def _first_stop(self, tokens: Sequence[int]) -> int | None:
        """Return the place of a stop token with at most blanks before it, or None."""
        place = next((i for i, token in enumerate(tokens) if token in self._stops), None)
        if place is None or self._tokenizer.decode(tokens[:place], skip_special_tokens=False).strip():
            return None
        return place

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a text that follows other text. Some tokenizers begin a text with a blank."""
        anchor = self._tokenizer.encode("x", add_special_tokens=False)
        tokens = self._tokenizer.encode(f"x{text}", add_special_tokens=False)
        if tokens[: len(anchor)] == anchor:
            return tokens[len(anchor) :]
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []
