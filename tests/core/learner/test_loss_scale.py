"""The dynamic loss scale of float16."""

from __future__ import annotations

import json

from learner.loss_scale import FIRST, LARGEST, PATIENCE, SMALLEST, LossScale


def test_an_overflow_halves_the_scale_and_many_good_steps_double_it() -> None:
    scale = LossScale()
    assert scale.value == FIRST
    assert scale.lower()
    for taken in range(2 * PATIENCE):
        assert scale.value == FIRST / 2 * (2 if taken >= PATIENCE else 1)
        scale.taken()
    assert scale.value == 2 * FIRST


def test_an_overflow_begins_the_count_of_good_steps_anew() -> None:
    scale = LossScale()
    for _ in range(PATIENCE - 1):
        scale.taken()
    scale.lower()
    scale.taken()
    assert scale.value == FIRST / 2


def test_the_scale_stays_within_its_bounds() -> None:
    scale = LossScale()
    while scale.lower():
        pass
    assert scale.value == SMALLEST
    for _ in range(100 * PATIENCE):
        scale.taken()
    assert scale.value == LARGEST


def test_a_restored_scale_goes_on_as_the_saved_one() -> None:
    saved, restored = LossScale(), LossScale()
    saved.lower()
    for _ in range(PATIENCE - 1):
        saved.taken()
    restored.restore(json.loads(json.dumps(saved.state())))
    for scale in (saved, restored):
        scale.taken()
        assert (scale.value, scale.state()) == (FIRST, [FIRST, 0.0])
