"""Check of `checkpoint.keep_best` against the metrics that a run with these settings writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import lcm

from maxpo.config import Config
from maxpo.configure.rules import Fault
from maxpo.plugins import short_name
from maxpo.tracking.metrics import METRICS, pattern_of
from maxpo.wording import did_you_mean

METRIC_KEYS = (
    *("checkpoint.keep_best", "checkpoint.every", "checkpoint.remote", "run.steps", "environment.name"),
    *("algorithm.k", "algorithm.mix_with", "algorithm.shadow", "algorithm.kl_coef", "learner.dtype"),
    *("eval.k", "eval.samples", "eval.greedy", "eval.every", "eval.at_end"),
)
"""Keys that `metric_problems` reads."""
_ONLY_WITH: Mapping[str, Callable[[Config], bool]] = {
    "environment/": lambda c: c.environment.name is not None,
    "algorithm/mix_weight": lambda c: c.algorithm.mix_with is not None,
    "algorithm/lam": lambda c: "interpolated" in (c.algorithm.advantage, c.algorithm.mix_with),
    "algorithm/entropy_coef": lambda c: c.algorithm.entropy_target is not None,
    "probe/": lambda c: c.algorithm.probe_every > 0,
    "time/probe_s": lambda c: c.algorithm.probe_every > 0,
    "mismatch/masked": lambda c: bool(c.algorithm.token_mask or c.algorithm.sequence_mask),
    "policy/reference_kl": lambda c: c.algorithm.kl_coef > 0,
    "train/loss_scale": lambda c: c.learner.dtype == "float16",
    "train/overflow_steps": lambda c: c.learner.dtype == "float16",
    "checkpoint/": lambda c: c.checkpoint.remote is not None,
    "eval/greedy": lambda c: c.eval.greedy,
    # These are not known yet when the checkpoint of their step is written.
    "time/checkpoint_s": lambda c: False,
    "time/checkpoint_write_s": lambda c: False,
    "time/eval_s": lambda c: False,
    "eval/mismatch_kl": lambda c: False,
}
"""Beginning of a name -> condition on the settings, for metrics that not every checkpoint has."""


def metric_problems(config: Config) -> Iterator[Fault]:
    """Yield the problem if no checkpoint will have a value of `checkpoint.keep_best`."""
    name = config.checkpoint.keep_best
    if name is None:
        return
    keys = ("checkpoint.keep_best",)
    if not config.checkpoint.every:
        yield (*keys, "checkpoint.every"), "Without checkpoints there is none to keep: set checkpoint.every too."
    elif not any(pattern.match(name) for pattern in _patterns(config)):
        hint = did_you_mean(name, map(_example(config), METRICS))
        yield keys, f"No checkpoint of this run has this metric.{hint} METRICS.md lists all metrics."
    elif name.startswith("eval/") and not _evaluated_with_a_checkpoint(config):
        message = "No step has both an evaluation and a checkpoint: set eval.at_end, or eval.every."
        yield (*keys, "eval.every", "checkpoint.every"), message


def _patterns(config: Config) -> list[re.Pattern[str]]:
    """Return the patterns of all names that may be there when a checkpoint is written."""
    ks, n = "|".join(map(str, config.eval.k)), str(config.eval.samples)
    figure = rf"(?:(?:pass|max)@(?:{ks})|(?:avg|maj)@{n}{'|greedy' * config.eval.greedy})"
    estimators = "|".join(map(short_name, config.algorithm.shadow)) or "(?!)"
    return [
        pattern_of(
            name,
            figure,
            {"k": str(config.algorithm.k) if name.startswith("reward/") else f"(?:{ks})", "n": n}
            | {"estimator": f"(?:{estimators})"},
        )
        for name in METRICS
        if all(holds(config) for start, holds in _ONLY_WITH.items() if name.startswith(start))
    ]


def _example(config: Config) -> Callable[[str], str]:
    """Return the function that puts values into the placeholders of a name."""
    values = {"k": str(max(config.eval.k)), "n": str(config.eval.samples)}
    return lambda name: re.sub(r"\{([kn])\}", lambda match: values[match[1]], name)


def _evaluated_with_a_checkpoint(config: Config) -> bool:
    """Return True if a checkpoint is written after a step with an evaluation."""
    every, saved, steps = config.eval.every, config.checkpoint.every, config.run.steps
    return config.eval.at_end or (every > 0 and (lcm(every, saved) <= steps or steps % every == 0))
