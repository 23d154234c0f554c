"""Arithmetic: chains of + - * with small numbers, such as `3 + 4 * 2 =`, where * has precedence.

The verifier `numeric` scores the answers by their last number.
"""

from __future__ import annotations

from random import Random

from maxpo.tasks.base import Split, TaskProblem
from maxpo.tasks.draws import make_id, split

_OPERATIONS = "+-*"


def problems(
    seed: int,
    train_size: int,
    eval_size: int,
    *,
    terms: int = 3,
    largest: int = 20,
    operations: str = "+-*",
    question: str = "{chain} =",
) -> Split:
    """Return the training and the evaluation problems (`maxpo.tasks.draws.split`).

    Args:
        seed: Selects and orders the problems.
        train_size: Number of training problems.
        eval_size: Number of evaluation problems.
        terms: Number of numbers in a chain, 2 or more.
        largest: Largest number in a chain, at least 1. The smallest is 1.
        operations: Allowed operations, some of + - *.
        question: Text of the prompt, with {chain} in place of the chain, such as "What is {chain}?".

    Raises:
        ValueError: An argument is out of its range, or there are too few problems.
    """
    if terms < 2:
        raise ValueError(f"arithmetic: terms = {terms} must be 2 or more")
    if largest < 1:
        raise ValueError(f"arithmetic: largest = {largest} must be 1 or more")
    if not operations or not set(operations) <= set(_OPERATIONS):
        raise ValueError(f"arithmetic: operations = {operations!r} must be some of {_OPERATIONS}")
    if "{chain}" not in question:
        raise ValueError(f"arithmetic: question = {question!r} must have {{chain}} where the numbers go")

    def draw(side: str, number: int) -> TaskProblem:
        rng = Random(f"arithmetic/{side}/{seed}/{number}")
        numbers = [rng.randint(1, largest) for _ in range(terms)]
        chosen = [rng.choice(operations) for _ in range(terms - 1)]
        text = " ".join([str(numbers[0])] + [f"{sign} {n}" for sign, n in zip(chosen, numbers[1:], strict=True)])
        prompt = question.replace("{chain}", text)
        return TaskProblem(problem_id=make_id("arithmetic", text), prompt=prompt, reference=evaluate(numbers, chosen))

    return split(draw, train_size, eval_size)


def evaluate(numbers: list[int], operations: list[str]) -> int:
    """Return the value of a chain. Products come first, then sums from left to right."""
    total, product, sign = 0, numbers[0], 1
    for operation, number in zip(operations, numbers[1:], strict=True):
        if operation == "*":
            product *= number
        else:
            total += sign * product
            product, sign = number, 1 if operation == "+" else -1
    return total + sign * product
