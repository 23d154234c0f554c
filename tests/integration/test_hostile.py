"""Every verifier, in its killable process, against completions that are meant to break it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maxpo.config import RewardConfig
from maxpo.rewards.registry import REWARDS
from maxpo.types import Group, Prompt
from rollout.scoring.verifier_pool import RewardPool
from tests.fakes import completion
from tests.hostile.texts import BOMBS, CANARY, TEXTS

HONEST = {
    "countdown": ({"numbers": [3, 7, 2], "target": 13}, "3*2=6,7+6=13"),
    "exact": ("yes", "yes"),
    "numeric": (1717, "It is 1717."),
    "math": (r"\frac{1}{2}", r"\boxed{\frac{2}{4}}"),
    "choice": ("B", "The answer is B."),
    "regex": ("(a|aa)+", "a" * 20),
    "json_schema": ({"type": "object", "required": ["age"]}, '{"age": 3}'),
    "format": (None, "<think>x</think>4"),
    "length": (None, "short"),
    "maze": ({"grid": ["S.", "#G"], "moves": 2}, "RD"),
}
"""A reference and a right answer for each. The pattern of `regex` is a catastrophic one."""
LIMIT_S = 1.5
MAY_GIVE_UP = {"math", "regex"}
"""Verifiers whose work on a text has no bound but the pool's."""


def test_there_are_enough_of_them_and_every_verifier_of_text_is_tried() -> None:
    assert len(TEXTS) + len(BOMBS) >= 40
    assert set(HONEST) >= set(REWARDS) - {"code", "code_unsafe_no_sandbox", "environment", "reasoning_gym"}


@pytest.mark.parametrize("name", sorted(HONEST))
def test_hostile_texts(name: str) -> None:
    Path(CANARY).unlink(missing_ok=True)
    reference, right = HONEST[name]
    prompt = Prompt(prompt_id=name, text=name, token_ids=(1,), reference=reference, source="hostile")

    def group(*texts: str) -> Group:
        return Group(prompt=prompt, completions=tuple(replace(completion(), text=text) for text in texts))

    pool = RewardPool(RewardConfig(verifier=name, args={"math": {"boxed": False}}, workers=2, timeout_s=LIMIT_S), 64)
    try:
        best = 0.0 if name == "length" else 1.0
        honest = group(right)
        pool.score([honest, honest])  # start-up is not part of the limit
        bombs, rest = pool.score([group(*BOMBS.values()), group(right, *TEXTS.values(), right)])
        (after,) = pool.score([honest])
        assert (after.rewards, after.outcomes) == ((best,), ("ok",))
    finally:
        pool.shutdown()

    assert {outcome.partition(":")[0] for outcome in bombs.outcomes} <= (
        {"ok", "timeout", "undecided"} if name in MAY_GIVE_UP else {"ok"}
    )
    if name in MAY_GIVE_UP:
        assert "timeout" in bombs.outcomes  # otherwise nothing here tries the limit
    assert {reward for reward, ok in zip(bombs.rewards, bombs.valid, strict=True) if ok} <= {0.0}
    assert (rest.rewards[0], rest.rewards[-1]) == (best, best)
    for key, reward, outcome in zip(TEXTS, rest.rewards[1:-1], rest.outcomes[1:-1], strict=True):
        assert outcome == ("too_long" if len(TEXTS[key]) > 20_000 else "ok"), key
        if name == "length":
            assert -1.0 <= reward <= 0.0, key
        else:
            assert reward == 0.0, key
    assert not Path(CANARY).exists()
