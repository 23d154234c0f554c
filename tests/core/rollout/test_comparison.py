"""Whether an engine computes what the learner computes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from maxpo.batches.agreement import Agreement, allowed_mean
from maxpo.batches.samples import Sample, samples_of
from maxpo.errors import RunError
from maxpo.types import Completion, Group
from rollout.comparison import compare, run_to_run
from rollout.protocols import Probe
from tests.fakes import completion, prompt

FLOAT32, BFLOAT16 = ("float32", "float32"), ("float32", "bfloat16")


def sampled(seed: int, tokens: int = 24) -> Completion:
    draw = random.Random(seed)
    return completion(tokens=tokens, logprobs=[draw.uniform(-3, 0) for _ in range(tokens)])


def probe(noise: float = 0.0) -> Probe:
    together = tuple(sampled(i) for i in range(4))
    alone = tuple(replace(c, logprobs=c.logprobs + np.float32(noise)) for c in together)
    return Probe(prompts=((5,), (5, 6), (5,) * 9, (5,) * 40), together=together, alone=alone)


def learner(*, gap: float = 0.0, noise: float = 0.0) -> Callable[[Sequence[Sample]], list[list[float]]]:
    """A learner that is off by `gap`, and by noise of this mean size."""
    draw = random.Random(1)

    def logprobs(samples: Sequence[Sample]) -> list[list[float]]:
        return [
            [
                (x + gap + draw.gauss(0, noise * 1.2533)) if ours else 0.0
                for x, ours in zip(s.rollout_logprobs.tolist(), s.loss_mask.tolist(), strict=True)
            ]
            for s in samples
        ]

    return logprobs


@pytest.mark.parametrize(
    ("gap", "noise", "dtypes", "agrees"),
    [
        (0.0, 2e-6, FLOAT32, True),
        (0.0, 5e-4, FLOAT32, True),
        (0.02, 0.0, FLOAT32, False),
        (0.0, 0.02, FLOAT32, False),
        (0.0, 0.06, BFLOAT16, True),
        (0.0, 0.06, ("bfloat16", "bfloat16"), True),
        (0.0, 0.2, BFLOAT16, False),
        (0.2, 0.0, BFLOAT16, False),
        (0.0, 0.008, ("float16", "float16"), True),
        (0.0, 0.05, ("float16", "float16"), False),
        (float("nan"), 0.0, BFLOAT16, False),
        (float("-inf"), 0.0, BFLOAT16, False),
    ],
)
def test_a_gap_beyond_rounding_is_refused(gap: float, noise: float, dtypes: tuple[str, str], agrees: bool) -> None:
    if agrees:
        assert compare("worker 0", probe(), learner(gap=gap, noise=noise), dtypes, 1.0).tokens == 96
        return
    with pytest.raises(RunError, match=r"worker 0 does not compute what the learner computes.*96 sampled tokens"):
        compare("worker 0", probe(), learner(gap=gap, noise=noise), dtypes, 1.0)


def test_the_engines_own_noise_is_allowed_for() -> None:
    with pytest.raises(RunError, match=r"\(at token \d+ after a prompt of \d+ tokens\)"):
        compare("w", probe(), learner(noise=0.02), FLOAT32, 1.0)
    assert compare("w", probe(noise=0.008), learner(noise=0.02), FLOAT32, 1.0).mean == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("temperature", "noise", "agrees"),
    [(2.0, 0.03, True), (2.0, 0.1, False), (0.5, 0.1, True), (0.5, 0.32, False), (0.1, 0.15, True), (0.1, 0.5, False)],
)
def test_rounding_weighs_more_at_low_temperatures(temperature: float, noise: float, agrees: bool) -> None:
    """As bfloat16 was measured: 0.06 nats at temperature 1 are a half at 2, 1.6 times as much at 0.5, 2.4 at 0.1."""
    if agrees:
        compare("w", probe(), learner(noise=noise), BFLOAT16, temperature)
        return
    with pytest.raises(RunError, match="does not compute what the learner computes"):
        compare("w", probe(), learner(noise=noise), BFLOAT16, temperature)


def test_run_to_run_stops_at_the_first_different_token() -> None:
    a = completion(token_ids=[1, 2, 3], logprobs=[-1.0, -2.0, -3.0])
    b = completion(token_ids=[1, 2, 4], logprobs=[-1.1, -2.3, -9.0])
    assert run_to_run([a], [b]) == pytest.approx(0.2)
    assert run_to_run([], []) == 0.0


def test_figures_by_hand() -> None:
    c = completion(tokens=2, logprobs=[-1.0, -2.0], loss_mask=[True, False])
    d = completion(tokens=1, logprobs=[-0.5])
    samples = list(samples_of(0, Group(prompt=prompt(), completions=(c, d, completion(tokens=0)))))
    found = Agreement.of(samples, [[0.0, 0.0, -0.9, 7.0], [0.0, 0.0, -0.8]])
    assert (found.tokens, found.worst, found.position) == (2, 1, 2)
    assert (found.mean, found.largest) == (pytest.approx(0.2), pytest.approx(0.3))
    assert found.kl == pytest.approx((0.0051709 + 0.0408182) / 2, rel=1e-4)
    assert allowed_mean(BFLOAT16, 0.0, 1.0) == 0.125
    assert allowed_mean(FLOAT32, 0.01, 1.0) == 0.04
    assert Agreement.of([], []).kl == 0.0
