"""Checks of single settings against registries and files, and all combinations of settings."""

from __future__ import annotations

import json
from pathlib import Path

from maxpo.checkpoints.manifest import MANIFEST
from maxpo.config.ranges import Must
from maxpo.configure.fields import schema
from maxpo.configure.rules import Combination
from maxpo.configure.rules.algorithm import ESTIMATOR_COMBINATIONS, is_lam, is_objective
from maxpo.configure.rules.cluster import CLUSTER_COMBINATIONS
from maxpo.configure.rules.code import CODE_COMBINATIONS
from maxpo.configure.rules.data import DATA_COMBINATIONS, PATH_HELP
from maxpo.configure.rules.pipeline import PIPELINE_COMBINATIONS
from maxpo.configure.rules.reward import VERIFIERS
from maxpo.environments.registry import ENVIRONMENTS
from maxpo.estimators.names import ADVANTAGE_NAMES
from maxpo.estimators.objectives import OBJECTIVES
from maxpo.losses.names import LOSS_NAMES
from maxpo.plugins import FUNCTION, is_address
from maxpo.tasks.registry import TASKS
from maxpo.wording import describe

CHOICES: dict[str, tuple[str, ...]] = {
    "data.task": tuple(TASKS),
    "reward.verifier": VERIFIERS,
    "algorithm.advantage": ADVANTAGE_NAMES,
    "algorithm.mix_with": ADVANTAGE_NAMES,
    "algorithm.shadow": ADVANTAGE_NAMES,
    "algorithm.loss": LOSS_NAMES,
}
"""Registered names that are allowed for a setting, or for each item of a list. A registry imports the section of its
settings, so the names cannot be in `maxpo/config/`."""


OWN = ("algorithm.advantage", "algorithm.mix_with", "algorithm.shadow", "algorithm.loss")
"""Settings that may also be the address of a user's function."""


def allowed(key: str) -> str:
    """Describe the values of a key in words."""
    text = describe(schema()[key].type)
    if key not in CHOICES:
        return text
    more = f", or {FUNCTION}" if key in OWN else ""
    return text.replace("text", f"one of {', '.join(CHOICES[key])}{more}")


def ranges_of(key: str, *, files_here: bool = True) -> tuple[Must, ...]:
    """Return the conditions on the value of a key: those beside its field, of registries, and of files.

    Args:
        key: Dotted key.
        files_here: True if the named files are on this machine. Otherwise conditions on files are left out.
    """
    of_files = _FILES.get(key, ()) if files_here else ()
    return (*schema()[key].ranges, *_REGISTRIES.get(key, ()), *of_files)


def _names(key: str) -> Must:
    """Return the condition that a text, or each text of a list, is one of `CHOICES`."""

    def holds(value: str | list[str]) -> bool:
        names = [value] if isinstance(value, str) else value
        return all(name in CHOICES[key] or (key in OWN and is_address(name)) for name in names)

    return Must(holds, f"Must be {allowed(key)}.")


def _is_json_object(path: str) -> bool:
    try:
        return isinstance(json.loads(Path(path).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):  # Not readable, not UTF-8, not JSON, or nested too deeply.
        return False


_REGISTRIES: dict[str, tuple[Must, ...]] = {
    # `reward_problems` checks reward.verifier, which may also be the user's own function.
    **{key: (_names(key),) for key in CHOICES if key != "reward.verifier"},
    "algorithm.objective": (
        Must(is_objective, f"Must be one of {', '.join(OBJECTIVES)}, with a number for the capital."),
    ),
    "algorithm.lam": (Must(is_lam, "Must be v, adaptive or a number."),),
    "reward.group": (Must(is_address, f"Must be {FUNCTION}."),),
    "environment.name": (
        Must(
            lambda v: v in ENVIRONMENTS or is_address(v),
            f"Must be one of {', '.join(ENVIRONMENTS)}, or a class of your own as package.module:Class.",
        ),
    ),
}

_IS_FILE = Must(lambda v: Path(v).is_file(), f"There is no such file. {PATH_HELP}")
_FILES: dict[str, tuple[Must, ...]] = {
    "model.path": (
        Must(lambda v: Path(v).is_dir(), f"There is no such folder. Models are not downloaded. {PATH_HELP}"),
        Must(
            lambda v: (Path(v) / "config.json").is_file(),
            "The folder has no config.json, so it is not a Hugging Face model. Was a folder above or below it meant?",
        ),
    ),
    "data.train_file": (_IS_FILE,),
    "data.eval_file": (_IS_FILE,),
    "learner.deepspeed": (
        _IS_FILE,
        Must(_is_json_object, "The file must be readable and hold one JSON object: {...}."),
    ),
    "checkpoint.resume": (
        Must(
            lambda v: v in ("auto", "must", "never") or Path(v, MANIFEST).is_file(),
            "Must be auto, must, never, or the folder of a checkpoint, such as runs/demo/checkpoints/step_000040.",
        ),
    ),
}


COMBINATIONS: tuple[Combination, ...] = (
    (
        ("learner.zero_stage", "learner.dtype"),
        lambda c: (c.learner.zero_stage, c.learner.dtype) not in ((0, "bfloat16"), (0, "float16")),
        "ZeRO stage 0 keeps no float32 gradients, so 16 bits lose precision: use stage 1 to 3, or float32.",
    ),
    *ESTIMATOR_COMBINATIONS,
    (
        ("algorithm.length_buffer", "rollout.max_new_tokens"),
        lambda c: c.algorithm.length_buffer is None or c.algorithm.length_buffer <= c.rollout.max_new_tokens,
        "algorithm.length_buffer must be at most rollout.max_new_tokens.",
    ),
    *CLUSTER_COMBINATIONS,
    *PIPELINE_COMBINATIONS,
    *CODE_COMBINATIONS,
    (
        ("algorithm.prompts_per_step", "algorithm.minibatches"),
        lambda c: c.algorithm.prompts_per_step % c.algorithm.minibatches == 0,
        "algorithm.prompts_per_step must be a multiple of algorithm.minibatches.",
    ),
    *DATA_COMBINATIONS,
    (
        ("eval.k", "eval.samples"),
        lambda c: all(k <= c.eval.samples for k in c.eval.k),
        "Each number in eval.k must be at most eval.samples: pass@k is estimated from that many completions.",
    ),
    (
        ("learner.token_budget", "data.max_prompt_tokens", "rollout.max_new_tokens"),
        lambda c: c.learner.token_budget >= c.data.max_prompt_tokens + c.rollout.max_new_tokens,
        "learner.token_budget must hold the longest sequence, data.max_prompt_tokens + rollout.max_new_tokens.",
    ),
    (
        ("sync.backend", "rollout.device", "learner.device"),
        lambda c: c.sync.backend not in ("shm", "gloo") or "cuda" not in (c.rollout.device, c.learner.device),
        "shm and gloo move weights between CPU processes. With a device of cuda, sync.backend must be nccl, ipc or "
        "auto.",
    ),
    (
        ("sync.backend", "rollout.device", "learner.device"),
        lambda c: c.sync.backend not in ("nccl", "ipc") or "cpu" not in (c.rollout.device, c.learner.device),
        "nccl and ipc move weights between GPUs. With a device of cpu, sync.backend must be shm, gloo or auto.",
    ),
)
