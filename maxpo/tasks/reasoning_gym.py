"""All datasets of the reasoning-gym package as tasks (extra `reasoning-gym`).

`maxpo.rewards.verifiers.reasoning_gym` scores the answers with the scoring of the dataset.
"""

from __future__ import annotations

import json
from typing import Any

from maxpo.rewards.verifiers import reasoning_gym as verifier
from maxpo.seeds import derive_seed
from maxpo.tasks.base import Split, TaskProblem
from maxpo.tasks.draws import make_id, split


def problems(seed: int, train_size: int, eval_size: int, *, dataset: str, **settings: Any) -> Split:
    """Return the training and the evaluation problems (`maxpo.tasks.draws.split`).

    Args:
        seed: Selects and orders the problems.
        train_size: Number of training problems.
        eval_size: Number of evaluation problems.
        dataset: Name of the dataset in the package, for example `gcd`.
        settings: Settings of the dataset, except `size`.

    Raises:
        ValueError: The package, dataset or setting does not exist, or there are too few problems.
    """
    if "size" in settings:
        raise ValueError("reasoning_gym: size is set by the run: leave it out of task_args")
    # Twice the expected number of draws, since one in five problems is held out.
    sizes = {"training": 1000 + 3 * train_size, "evaluation": 1000 + 10 * eval_size}
    sides = {
        name: verifier.make_dataset(dataset, settings, seed=derive_seed("reasoning_gym", name, seed) % 2**31, size=size)
        for name, size in sizes.items()
    }

    def draw(side: str, number: int) -> TaskProblem:
        if number >= sizes[side]:
            raise ValueError(f"reasoning_gym: {dataset} has too few different {side} problems with these settings")
        made = sides[side]
        entry = made[number]
        try:
            kept = json.loads(json.dumps(entry))
        except TypeError as error:
            raise ValueError(f"reasoning_gym: problems of {dataset} are not plain JSON: {error}") from error
        if made.score_answer(entry["answer"], kept) != made.score_answer(entry["answer"], entry):
            raise ValueError(f"reasoning_gym: {dataset} cannot be scored from plain JSON, so it cannot be used here")
        return TaskProblem(
            problem_id=make_id("reasoning_gym", dataset, kept["question"], kept["answer"]),
            prompt=kept["question"],
            reference={"dataset": dataset, "settings": settings, "entry": kept},
        )

    return split(draw, train_size, eval_size)
