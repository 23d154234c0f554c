"""The verifier `length`, a soft penalty for long answers as in DAPO (arXiv 2503.14476)."""

from __future__ import annotations

from maxpo.rewards.base import Score

CAP = 20000
"""Default of `cap`, which no default of `reward.max_chars` is below."""


def length(text: str, reference: object, *, start: int = 16000, cap: int = CAP) -> Score:
    """Return reward 0 up to `start` characters, a linear decrease to -1 at `cap`, and -1 beyond.

    DAPO counts tokens. This verifier counts characters, because a tokenizer in every verifier process would make the
    reward depend on the model. To compare with `rollout.max_new_tokens`, divide by the characters per token of your
    answers (about four in English). Keep `cap` below the length at which `rollout.max_new_tokens` cuts answers.

    A length says nothing about the answer, so this verifier has no opinion about success.

    Args:
        text: Any text.
        reference: Not used.
        start: Number of characters without a penalty.
        cap: Number of characters with the full penalty, at most `reward.max_chars`, beyond which text is not read.
    """
    return Score(reward=0.0 - min(1.0, max(0, len(text) - start) / (cap - start)))  # 0.0, not -0.0
