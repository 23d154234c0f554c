"""The countdown task and its verifier, against cases worked by hand."""

from __future__ import annotations

from random import Random

import pytest

from maxpo.rewards.base import Score
from maxpo.rewards.verifiers.countdown import countdown as verify
from maxpo.tasks.countdown import count, is_held_out, problems, random_derivation, teacher
from maxpo.tasks.registry import TASKS

REFERENCE = {"numbers": [3, 7, 2], "target": 13}
ILLEGAL = Score(reward=0.0, success=False, parts={"format": 0.0})
LEGAL = Score(reward=0.0, success=False, parts={"format": 1.0})
SOLVED = Score(reward=1.0, success=True, parts={"format": 1.0})


def key(problem):
    return tuple(sorted(problem.reference["numbers"])), problem.reference["target"]


@pytest.mark.parametrize("text", ["3*2=6,7+6=13", "3*2=6,6+7=13", "2*3=6,7+6=13"])
def test_solutions_get_one(text):
    assert verify(text, REFERENCE) == SOLVED


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("3-3=0,0*5=0", {"numbers": [3, 3, 5], "target": 0}),
        ("9*9=81,81+9=90", {"numbers": [9, 9, 9], "target": 90}),
        ("1+2=3,3+4=7,7*5=35", {"numbers": [1, 2, 4, 5], "target": 35}),
        # The intermediate 3 and the given 3 are two different numbers.
        ("1+2=3,3-3=0", {"numbers": [1, 2, 3], "target": 0}),
    ],
)
def test_solutions_of_other_problems_get_one(text, reference):
    assert verify(text, reference) == SOLVED


@pytest.mark.parametrize(
    "text",
    [
        "3*2=6,7-6=1",  # every number used, wrong target
        "3+7=10",  # 2 is left over
        "3*2=6",
    ],
)
def test_legal_steps_that_do_not_solve_get_zero_and_count_as_well_formed(text):
    assert verify(text, REFERENCE) == LEGAL


def test_reaching_the_target_with_a_number_left_over_is_not_a_solution():
    assert verify("7*2=14", {"numbers": [7, 2, 5], "target": 14}) == LEGAL


@pytest.mark.parametrize(
    "text",
    [
        "3*2=7,7+7=14",  # wrong arithmetic in the first step
        "3*2=6,7+6=12",  # and in the last
        "3*2=5,7+5=13",
        "7+6=13",  # 6 was never made
        "3+3=6,7+6=13",  # 3 used twice
        "3*2=6,7+6=13,6+7=13",  # numbers used again
        "3*2=6,6+6=12",  # the result used twice
        "2-3=-1,7--1=8",  # negative intermediate
        "2-3=1,7+1=8",
        "7/2=3,3+3=6",  # no division
        "3*2=06,7+6=13",  # leading zero
        "03*2=6,7+6=13",
        "+3*2=6,7+6=13",
        "3*2=6, 7+6=13",  # space
        " 3*2=6,7+6=13",
        "3*2=6,7+6=13 ",
        "3*2=6,7+6=13\n",
        "3*2=6\n,7+6=13",
        "3*2=6,7+6=13,",
        ",3*2=6,7+6=13",
        "3*2=6,,7+6=13",
        "3*2=6;7+6=13",
        "3*2=6,7+6=13:",
        "3*2==6,7+6=13",
        "13",
        "3*2+7=13",
        "3\u00d72=6,7+6=13",  # multiplication sign
        "\uff13*2=6,7+6=13",  # full-width 3
        "\u0663*2=6,7+6=13",  # Arabic-Indic 3
        "3*2=\u00b2,7+6=13",  # superscript: isdigit() but not int()
        "",
        "\n",
        "\x00",
        "\ud800",
        ",",
        ",,,,",
        "3*2=" + "6" * 5000,  # int() refuses to read this many digits
        "1" * 1_000_000,
        "," * 1_000_000,
        "3*2=6," * 200_000,
    ],
)
def test_anything_else_is_illegal_and_never_raises(text):
    assert verify(text, REFERENCE) == ILLEGAL


def test_results_above_99_are_illegal():
    reference = {"numbers": [9, 9, 9], "target": 729}
    assert verify("9*9=81,81*9=729", reference) == ILLEGAL


def test_the_verifier_leaves_the_reference_alone():
    reference = {"numbers": [3, 7, 2], "target": 13}
    verify("3*2=6,7+6=13", reference)
    assert reference == {"numbers": [3, 7, 2], "target": 13}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_problem_is_solved_by_a_derivation_of_its_numbers(seed):
    rng = Random(seed)
    for problem in [part for split in problems(seed, 300, 100) for part in split]:
        numbers, target = problem.reference["numbers"], problem.reference["target"]
        assert problem.prompt == f"{numbers[0]} {numbers[1]} {numbers[2]}={target}:"
        assert all(1 <= number <= 9 for number in numbers)
        assert 0 <= target <= 99
        assert verify(teacher(numbers, target, 1.0, rng), problem.reference) == SOLVED


def test_random_derivations_are_valid_and_state_their_result():
    rng = Random(0)
    for _ in range(500):
        numbers = [rng.randint(1, 9) for _ in range(3)]
        steps, target = random_derivation(numbers, rng)
        assert verify(steps, {"numbers": numbers, "target": target}) == SOLVED


def test_random_derivations_cover_exactly_the_valid_ones():
    # By hand, for 1 and 2: 1-2 is negative and therefore not valid.
    rng = Random(0)
    seen = {random_derivation([1, 2], rng) for _ in range(300)}
    assert seen == {("1+2=3", 3), ("2+1=3", 3), ("2-1=1", 1), ("1*2=2", 2), ("2*1=2", 2)}


def test_the_teacher_solves_about_as_often_as_it_is_told():
    rng = Random(0)
    # 4 of 51 derivations reach 79 (8*9=72, 72+7=79 and its mirror images): 0.3 + 0.7 * 4/51 = 0.355.
    answers = [teacher([7, 8, 9], 79, 0.3, rng) for _ in range(2000)]
    scores = [verify(answer, {"numbers": [7, 8, 9], "target": 79}) for answer in answers]
    assert all(score.parts["format"] == 1.0 for score in scores)
    share = sum(score.reward for score in scores) / len(scores)
    assert 0.31 < share < 0.40


def test_splits_of_all_seeds_are_disjoint():
    train_keys, eval_keys = set(), set()
    for seed, (train_size, eval_size) in enumerate([(7000, 10), (100, 1800), (3000, 512), (10, 128)]):
        train, held_out = problems(seed, train_size, eval_size)
        assert (len(train), len(held_out)) == (train_size, eval_size)
        train_keys.update(map(key, train))
        eval_keys.update(map(key, held_out))
    assert train_keys and eval_keys
    assert not train_keys & eval_keys


def test_the_side_ignores_the_order_of_the_numbers_and_never_changes():
    sides = {target: is_held_out([3, 7, 2], target) for target in range(20)}
    assert sides == {target: is_held_out([2, 3, 7], target) for target in range(20)}
    # Fixed for good: a change here would let old training problems into the evaluation.
    assert [target for target, held_out in sides.items() if held_out] == [12]


def test_no_problem_comes_twice_in_a_split():
    for split in problems(0, count(held_out=False), count(held_out=True)):
        assert len({problem.prompt for problem in split}) == len(split)
        assert len({problem.problem_id for problem in split}) == len(split)


def test_the_seed_decides_and_nothing_else_does():
    assert problems(3, 50, 20) == problems(3, 50, 20)
    assert problems(3, 50, 20)[0] != problems(4, 50, 20)[0]
    assert problems(3, 50, 20)[1] != problems(4, 50, 20)[1]


def test_a_smaller_split_is_the_beginning_of_a_larger_one():
    train, held_out = problems(3, 200, 80)
    assert problems(3, 50, 20) == (train[:50], held_out[:20])


def test_the_same_problem_has_the_same_id_under_every_seed():
    everything = [problems(seed, count(held_out=False), 0)[0] for seed in (0, 1)]
    ids = [{problem.prompt: problem.problem_id for problem in split} for split in everything]
    assert ids[0] == ids[1]


def test_the_first_problem_of_seed_0_is_pinned():
    (train,), (held_out,) = problems(0, 1, 1)
    assert (train.prompt, train.problem_id) == ("8 8 9=80:", "b961da3f1f6b369e")
    assert (held_out.prompt, held_out.problem_id) == ("2 6 3=9:", "8c80aee4142cbe84")


def test_empty_splits_are_allowed():
    assert problems(0, 0, 0) == ([], [])


def test_asking_for_more_than_exist_says_how_many_exist():
    with pytest.raises(ValueError, match="20000 training problems asked for, but only 7517 exist"):
        problems(0, 20000, 10)
    with pytest.raises(ValueError, match="5000 evaluation problems asked for, but only 1895 exist"):
        problems(0, 10, 5000)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        problems(0, -1, 10)


def test_the_registry_has_the_task():
    assert TASKS["countdown"](0, 5, 5) == problems(0, 5, 5)
