"""Ranges and combinations of the sections without a file of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maxpo.checkpoints.manifest import MANIFEST
from maxpo.config import Config
from maxpo.configure.fields import schema
from maxpo.configure.rules.algorithm import ESTIMATOR_COMBINATIONS, is_objective
from maxpo.configure.rules.cluster import CLUSTER_COMBINATIONS, CLUSTER_POSITIVE, CLUSTER_RANGES
from maxpo.configure.rules.code import CODE_COMBINATIONS, CODE_POSITIVE, CODE_RANGES
from maxpo.configure.rules.data import DATA_COMBINATIONS, DATA_RANGES, PATH_HELP
from maxpo.configure.rules.environment import (
    ENVIRONMENT_POSITIVE,
    ENVIRONMENT_RANGES,
)
from maxpo.configure.rules.reward import VERIFIERS
from maxpo.estimators.names import ADVANTAGE_NAMES
from maxpo.estimators.objectives import OBJECTIVES
from maxpo.tasks.registry import TASKS
from maxpo.wording import describe


def _is_json_object(path: str) -> bool:
    try:
        return isinstance(json.loads(Path(path).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):  # Not readable, not UTF-8 or not JSON.
        return False


CHOICES: dict[str, tuple[str, ...]] = {
    "data.task": tuple(TASKS),
    "reward.verifier": VERIFIERS,
    "algorithm.advantage": ADVANTAGE_NAMES,
    "algorithm.mix_with": ADVANTAGE_NAMES,
    "algorithm.shadow": ADVANTAGE_NAMES,
}
"""Keys whose type is text, or a list of it, but which name something that is registered."""


def _names(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(key: str) -> str:
    """Says in words what values a key takes."""
    text = describe(schema()[key].type)
    return text.replace("text", f"one of {', '.join(CHOICES[key])}") if key in CHOICES else text


_POSITIVE = (
    """
    run.steps data.train_size data.max_prompt_tokens reward.workers reward.timeout_s reward.max_chars
    algorithm.prompts_per_step algorithm.minibatches algorithm.aggregation_constant algorithm.tis_cap
    rollout.workers rollout.tensor_parallel_size rollout.max_new_tokens rollout.temperature
    rollout.max_concurrent_sequences rollout.cpu_kv_cache_gib rollout.start_timeout_s rollout.generate_timeout_s
    rollout.restart_window_s rollout.health_interval_s rollout.health_timeout_s
    learner.ranks learner.cpu_threads learner.lr learner.token_budget learner.logprob_chunk
    learner.start_timeout_s learner.step_timeout_s learner.lora.alpha sync.bucket_mib sync.timeout_s
    checkpoint.keep_last checkpoint.stop_within_s eval.prompts eval.samples
""".split()
    + CLUSTER_POSITIVE
    + CODE_POSITIVE
    + ENVIRONMENT_POSITIVE
)


_NOT_NEGATIVE = """
    algorithm.clip_high algorithm.kl_coef algorithm.entropy_coef algorithm.refill_rounds
    learner.warmup_steps learner.weight_decay learner.grad_clip eval.every tracking.save_rollouts
    checkpoint.every checkpoint.keep_every rollout.max_restarts rollout.health_grace_s learner.max_restarts
    run.stall_timeout_s data.max_bad_rows learner.lora.rank
""".split()


RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *(
        (key, lambda v, names=names: set(_names(v)) <= set(names), f"Must be {allowed(key)}.")
        for key, names in CHOICES.items()
        if key != "reward.verifier"  # or a function of one's own
    ),
    *((key, lambda value: value > 0, "Must be more than 0.") for key in _POSITIVE),
    *((key, lambda value: value >= 0, "Must be 0 or more.") for key in _NOT_NEGATIVE),
    # The name becomes a folder that `run.overwrite` may delete, so it must not lead anywhere else.
    (
        "run.name",
        lambda v: v not in ("", ".", "..") and not set("/\\\0") & set(v),
        "Must be a plain folder name, no slash.",
    ),
    ("run.seed", lambda v: 0 <= v < 2**32, "Must be at least 0 and below 2**32."),
    ("model.path", lambda v: Path(v).is_dir(), f"There is no such folder. Models are not downloaded. {PATH_HELP}"),
    (
        "model.path",
        lambda v: (Path(v) / "config.json").is_file(),
        "The folder has no config.json, so it is not a Hugging Face model. Was a folder above or below it meant?",
    ),
    *DATA_RANGES,
    (
        "algorithm.group_size",
        lambda v: v >= 2,
        "Must be 2 or more: completions of a prompt are compared with each other.",
    ),
    ("algorithm.objective", is_objective, f"Must be one of {', '.join(OBJECTIVES)}, with a number for the capital."),
    (
        "algorithm.mix_weight",
        lambda v: len(v) in (1, 2) and all(0 <= w <= 1 for w in v),
        "Must be one or two numbers, each at least 0 and at most 1.",
    ),
    ("algorithm.clip_low", lambda v: 0 <= v < 1, "Must be at least 0 and below 1."),
    (
        "rollout.top_p",
        lambda v: v == 1,
        "Training needs 1.0: the learner's probabilities are over all tokens, so the sampler's must be too.",
    ),
    (
        "rollout.top_k",
        lambda v: v == 0,
        "Training needs 0: the learner's probabilities are over all tokens, so the sampler's must be too.",
    ),
    ("rollout.gpu_memory_utilization", lambda v: 0 < v <= 1, "Must be more than 0 and at most 1."),
    ("learner.zero_stage", lambda v: 0 <= v <= 3, "Must be 0, 1, 2 or 3."),
    (
        "learner.betas",
        lambda v: len(v) == 2 and all(0 <= b < 1 for b in v),
        "Must be two numbers, each at least 0 and below 1.",
    ),
    ("learner.deepspeed", lambda v: Path(v).is_file(), f"There is no such file. {PATH_HELP}"),
    ("learner.deepspeed", _is_json_object, "The file must be readable and hold one JSON object: {...}."),
    (
        "learner.lora.targets",
        lambda v: all(name.isidentifier() for name in v) and len(set(v)) == len(v),
        "Must be different last names of layers, without dots, such as [q_proj, v_proj].",
    ),
    (
        "checkpoint.resume",
        lambda v: v in ("auto", "must", "never") or Path(v, MANIFEST).is_file(),
        "Must be auto, must, never, or the folder of a checkpoint, such as runs/demo/checkpoints/step_000040.",
    ),
    ("checkpoint.remote", lambda v: "://" in v, "Must be a URL, such as s3://bucket/prefix or file:///folder."),
    ("eval.k", lambda v: all(k >= 1 for k in v), "Each must be 1 or more."),
    *CLUSTER_RANGES,
    *CODE_RANGES,
    *ENVIRONMENT_RANGES,
)
"""Key, what must hold for its value, and what is said otherwise. Null is never asked: the type allows it or not."""


COMBINATIONS: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
    (
        ("learner.zero_stage", "learner.dtype"),
        lambda c: (c.learner.zero_stage, c.learner.dtype) != (0, "bfloat16"),
        "ZeRO stage 0 keeps no float32 gradients, so bfloat16 loses digits: use stage 1 to 3, or float32.",
    ),
    *ESTIMATOR_COMBINATIONS,
    *CLUSTER_COMBINATIONS,
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
        lambda c: c.sync.backend != "gloo" or "cuda" not in (c.rollout.device, c.learner.device),
        "gloo moves weights between CPU processes. With a device of cuda, sync.backend must be nccl, ipc or auto.",
    ),
    (
        ("sync.backend", "rollout.device", "learner.device"),
        lambda c: c.sync.backend not in ("nccl", "ipc") or "cpu" not in (c.rollout.device, c.learner.device),
        "nccl and ipc move weights between GPUs. With a device of cpu, sync.backend must be gloo or auto.",
    ),
)
"""Keys that are read, what must hold for the config, and what is said otherwise."""


FILES = ("model.path", "data.train_file", "data.eval_file", "learner.deepspeed", "checkpoint.resume")
"""Keys whose ranges look at files."""
