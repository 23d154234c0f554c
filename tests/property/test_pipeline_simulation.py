"""The simulated pipeline for any run: the bound, each group once, and a closed form where nothing overlaps."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.pipeline.simulation import Scenario, Simulation, resampled

EXAMPLES = int(os.environ.get("MAXPO_EXAMPLES", "200"))
STEPS = 12
seconds = st.floats(0, 30)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Any run. One step off and colocated runs are among them."""
    staleness = draw(st.integers(0, 4))
    return Scenario(
        workers=draw(st.integers(1, 3)),
        slots=draw(st.integers(1, 6)),
        prompts=draw(st.integers(1, 4)),
        samples=draw(st.integers(1, 4)),
        token_s=draw(st.floats(0.01, 2)),
        sequence_s=draw(st.floats(0, 1)),
        update_s=draw(seconds),
        sync_s=draw(seconds),
        score_s=draw(seconds),
        staleness=staleness,
        lookahead=draw(st.integers(0, staleness)),
        drained=draw(st.booleans()),
        colocated=draw(st.booleans()),
        overcommit=draw(st.floats(1, 4)),
        prefill_tokens_per_s=draw(st.none() | st.floats(0.5, 100)),
    )


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(np.array)


@given(scenario=scenarios(), lengths=lengths, seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_each_group_is_trained_once_and_in_time(scenario: Scenario, lengths: np.ndarray, seed: int) -> None:
    simulation = Simulation(scenario, resampled(lengths, scenario.samples, seed))
    steps = [simulation.step() for _ in range(STEPS)]
    groups = [group for step in steps for group in step.groups]
    numbers = [group.number for group in groups]
    assert all(len(step.groups) == scenario.prompts for step in steps)
    assert len(set(numbers)) == len(numbers)
    assert all(group.left == 0 for group in groups)
    for step in steps:
        for group in step.groups:
            assert step.number - group.admitted <= scenario.staleness
            assert 0 <= step.number - 1 - group.version <= scenario.staleness
    # A group that could not wait any longer is gone: all that were admitted up to step STEPS - S.
    admitted = scenario.prompts * (scenario.lookahead + STEPS - scenario.staleness)
    assert set(range(admitted)) <= set(numbers)
    if scenario.lookahead == scenario.staleness:
        assert numbers == sorted(numbers)
    ends = [0.0, *(step.ended_s for step in steps)]
    least_s = scenario.update_s + scenario.sync_s
    assert all(later - earlier >= least_s - 1e-6 for earlier, later in pairwise(ends))
    assert steps[-1].slot_s <= ends[-1] * scenario.workers * scenario.slots + 1e-6


@given(scenario=scenarios(), lengths=lengths, seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_step_without_overlap_has_a_closed_form(scenario: Scenario, lengths: np.ndarray, seed: int) -> None:
    """Every completion runs at once: sorted by length, each waits for those before, with fewer and fewer beside."""
    sequences = scenario.prompts * scenario.samples
    scenario = replace(scenario, staleness=0, lookahead=0, slots=sequences, overcommit=4)
    simulation = Simulation(scenario, resampled(lengths, scenario.samples, seed))
    ended_s = 0.0
    for _ in range(3):
        step = simulation.step()
        sampling_s = 0.0
        for worker in range(scenario.workers):
            own = [group.lengths for group in step.groups if group.number % scenario.workers == worker]
            tokens = np.sort(np.array(own).ravel()) if own else np.array([0])
            beside = np.arange(tokens.size, 0, -1)
            times = np.diff(tokens, prepend=0) * (scenario.token_s + beside * scenario.sequence_s)
            sampling_s = max(sampling_s, times.sum())
        ended_s += sampling_s + scenario.score_s + scenario.update_s + scenario.sync_s
        assert step.ended_s == pytest.approx(ended_s)
