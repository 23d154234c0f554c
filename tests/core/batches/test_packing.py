"""Packing: nothing lost, nothing doubled, budgets kept, and what lies where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maxpo.batches.packing import pack, plan_microbatches
from maxpo.batches.samples import reward_matrix, valid_samples
from tests.fakes import completion, prompt, sample, scored


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 200), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_a_plan_holds_every_sequence_once_within_the_budget(lengths: list[int], budget: int, ranks: int) -> None:
    plan = plan_microbatches(lengths, budget, ranks)
    assert len(plan) == ranks
    assert len({len(rows) for rows in plan}) == 1
    assert sorted(i for rows in plan for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= budget for rows in plan for row in rows)
    loads = [sum(lengths[i] for row in rows for i in row) for rows in plan]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 200), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_padding_counts_where_each_sequence_has_a_row(lengths: list[int], budget: int, ranks: int) -> None:
    plan = plan_microbatches(lengths, budget, ranks, padded=True)
    assert len({len(rows) for rows in plan}) == 1
    assert sorted(i for rows in plan for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) * max(lengths[i] for i in row) <= budget for rows in plan for row in rows if row)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=60), st.integers(60, 200), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_a_repeated_prompt_counts_an_eighth(sequences: list[tuple[int, int]], budget: int, ranks: int) -> None:
    prompts = [(group, 3 * group) for group, _ in sequences]
    lengths = [3 * group + n for group, n in sequences]
    plan = plan_microbatches(lengths, budget, ranks, prompts=prompts)
    assert len({len(rows) for rows in plan}) == 1
    assert sorted(i for rows in plan for row in rows for i in row) == list(range(len(lengths)))
    for row in (row for rows in plan for row in rows):
        once = sum({group: 3 * group for group in (prompts[i][0] for i in row)}.values())
        further = sum(prompts[i][1] for i in row) - once
        assert sum(lengths[i] - prompts[i][1] for i in row) + once + further // 8 <= budget


def test_completions_of_one_prompt_are_computed_together() -> None:
    # 8 groups of 4: a prompt of 40 tokens and completions of 10.
    prompts = [(i // 4, 40) for i in range(32)]
    (plan,) = plan_microbatches([50] * 32, 200, 1, prompts=prompts)
    assert [len({prompts[i][0] for i in row}) for row in plan] == [2, 2, 2, 2]
    # Ranks have about the same work, even if there is one group only.
    shares = plan_microbatches([50] * 32, 2000, 4, prompts=[(0, 40)] * 32)
    assert [len(row) for (row,) in shares] == [8, 8, 8, 8]


def test_sequences_of_similar_lengths_share_a_padded_microbatch() -> None:
    assert plan_microbatches([2, 30, 2, 28, 2, 2], 60, 1, padded=True) == [[[1, 3], [0, 2, 4, 5]]]
    assert plan_microbatches([2, 30, 2, 28, 2, 2], 66, 1) == [[[1, 3, 0, 2, 4, 5]]]


def test_no_more_rows_than_the_longest_first_rule_needs() -> None:
    assert plan_microbatches([5, 5, 4, 4], 9, 1) == [[[0, 2], [1, 3]]] or plan_microbatches([5, 5, 4, 4], 9, 1) == [
        [[0, 3], [1, 2]]
    ]
    assert [len(rows) for rows in plan_microbatches([10] * 7, 30, 2)] == [2, 2]


def test_a_sequence_over_the_budget_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"12 tokens.*token_budget = 10"):
        plan_microbatches([3, 12], 10, 1)


def test_a_prompt_is_shared_with_the_first_sequence_that_has_it() -> None:
    rows = [([7, 8, 1], 2), ([7, 8, 2, 2], 2), ([7, 8, 1], 1), ([9], 1), ([7, 8, 3], 2), ([9, 9], 1), ([3], 0)]
    row = pack([sample(ids, prompt=length) for ids, length in rows], torch.ones(1, 1), lambda sample: 1.0)
    assert row.shared == ((0, 0), (0, 2), (2, 0), (3, 0), (0, 2), (5, 0), (6, 0))


def test_a_row_by_hand() -> None:
    groups = [
        scored(
            [1.0, 0.0], prompt=prompt("a", (7, 8)), completions=(completion("ab", tokens=2), completion("c", tokens=1))
        ),
        scored([0.0, 1.0], valid=[False, True], prompt=prompt("b", (9,))),
    ]
    samples = valid_samples(groups)
    assert [(s.group, s.index) for s in samples] == [(0, 0), (0, 1), (1, 1)]
    row = pack(samples, torch.tensor([[2.0, -2.0], [5.0, 3.0]]), lambda s: 1.0 / s.loss_tokens)
    assert row.lengths == (4, 3, 4)
    assert row.token_ids[:4].tolist() == [7, 8, ord("a") % 50, ord("b") % 50]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]
    assert row.loss_mask.tolist() == [False, False, True, True, False, False, True, False, True, True, True]
    assert row.rollout_logprobs.tolist() == [0, 0, -1, -1, 0, 0, -1, 0, -1, -1, -1]
    assert row.advantages.tolist() == [2] * 4 + [-2] * 3 + [3] * 4
    torch.testing.assert_close(row.token_weights, torch.tensor([0.5] * 4 + [1.0] * 3 + [1 / 3] * 4))


def test_an_empty_row_keeps_a_rank_in_step_without_a_loss() -> None:
    row = pack([], torch.zeros(1, 2), lambda s: 1.0)
    assert not bool(row.loss_mask.any())
    assert len(row.token_ids) > 0


def test_rewards_of_invalid_samples_are_masked_not_zero() -> None:
    rewards, valid = reward_matrix([scored([1.0, float("nan")], valid=[True, False])], torch.device("cpu"))
    assert valid.tolist() == [[True, False]]
    assert rewards.tolist() == [[1.0, 0.0]]
