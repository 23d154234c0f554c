"""A probe: the gradients of every estimator on a real model with real groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from launch.cluster.head import reach
from launch.cluster.paths import with_absolute_paths
from launch.cluster.system import system
from launch.run.destination import new_folder
from launch.run.readiness import get_ready
from launch.run.resuming import with_date
from launch.terminal.printing import say
from launch.terminal.probe import probe_tables
from maxpo.batches.samples import reward_matrix, training_rewards
from maxpo.config import AlgorithmConfig
from maxpo.configure.loading import LoadedConfig
from maxpo.data.order import PromptStream
from maxpo.errors import InputError, RunError
from maxpo.estimators.mixing import parameters_of
from maxpo.estimators.names import ADVANTAGE_NAMES, fixed_lam
from maxpo.estimators.probe import SIZED, ProbeRequest, refusals
from maxpo.evaluation.probe import ProbeReport, probe_report
from maxpo.loop.observer import Observer
from maxpo.loop.publish import publish
from maxpo.tracking.run_log import RunLog
from maxpo.types import Mix, Prompt, ScoredGroup

PROBE_FILE = "probe.json"


def probe_model(loaded: LoadedConfig, groups: int, output: Path | None, console: Console, *, as_json: bool) -> int:
    """Measure the estimators on the training prompts, write `probe.json` and the completions, and print the figures.

    Args:
        loaded: the settings, with the model to probe as `model.path`.
        groups: number of groups, two for each prompt.
        output: folder of the files; None means `run.dir`/`run.name`-probe.
        console: gets the progress and, without `as_json`, the tables.
        as_json: print JSON to standard output instead of the tables.

    Raises:
        InputError: the settings cannot be probed, or the output folder is not empty.
        RunError: too few prompts have two usable groups.
    """
    loaded = with_absolute_paths(with_date(loaded))
    config = loaded.config
    _check(loaded, groups)
    folder = new_folder(output or Path(config.run.dir) / f"{config.run.name}-probe")
    reach(config.ray)
    ready = get_ready(loaded, say=partial(say, console), run_folder=False)
    prompts = PromptStream(ready.train, config.run.seed).next(groups // 2)
    result = _measure(loaded, prompts, folder, console)
    (folder / PROBE_FILE).write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    if as_json:
        print(json.dumps({"file": str(folder / PROBE_FILE)} | asdict(result), indent=1))
        return 0
    for table in probe_tables(result):
        console.print(table)
    say(console, f"{result.advice}\nresults in {folder}")
    return 0


def _check(loaded: LoadedConfig, groups: int) -> None:
    """Refuse what cannot be probed."""
    learner, algorithm = loaded.config.learner, loaded.config.algorithm
    if groups < 4 or groups % 2:
        raise InputError(f"--groups {groups}: must be an even number of at least 4, two groups for each prompt")
    if learner.zero_stage == 3 or learner.sequence_parallel > 1:
        raise InputError(
            f"learner.zero_stage = {learner.zero_stage}, learner.sequence_parallel = {learner.sequence_parallel}: a "
            "probe takes the gradients of single samples, so it needs zero_stage 0 to 2 and sequence_parallel 1"
        )
    if algorithm.k >= algorithm.group_size:
        raise InputError(
            f"algorithm.k = {algorithm.k} with algorithm.group_size = {algorithm.group_size}: a probe compares with "
            "maxpo, which needs k < group_size"
        )


def _measure(loaded: LoadedConfig, prompts: Sequence[Prompt], folder: Path, console: Console) -> ProbeReport:
    config, algorithm = loaded.config, loaded.config.algorithm
    log = RunLog(folder, tensorboard=False, save_rollouts=len(prompts))
    with system(config, folder / "log") as running:
        publish(running.rollouts, running.learner, Observer())
        sampled: list[list[ScoredGroup]] = []
        for draw in ("probe.1", "probe.2"):
            groups = running.rollouts.generate(prompts, algorithm.group_size, draw)
            scored = running.rollouts.judge(running.rollouts.score(groups))
            log.log_rollouts(draw, scored)
            sampled.append(training_rewards(scored, algorithm, config.rollout.max_new_tokens))
        running.rollouts.rest()
        say(console, f"{2 * len(prompts)} groups sampled; one backward pass for each of their samples")
        pairs = [pair for pair in zip(*sampled, strict=True) if all(sum(g.valid) > algorithm.k for g in pair)]
        if len(pairs) < 2:
            raise RunError(
                f"only {len(pairs)} of {len(prompts)} prompts have two groups with more than algorithm.k = "
                f"{algorithm.k} valid samples; the outcomes are in {folder / 'rollouts'}"
            )
        request, refused = _request(algorithm, pairs, config.run.seed)
        parts = running.learner.probe(request)
    figures = [own for part in parts for own in part.figures]
    judged = [s for pair in pairs for group in pair for s, ok in zip(group.successes, group.valid, strict=True) if ok]
    return probe_report(
        figures,
        request.names,
        group_size=algorithm.group_size,
        k=algorithm.k,
        objective=algorithm.objective,
        pass_rate=sum(judged) / len(judged),
        dimensions=parts[0].dimensions,
        parameters=parts[0].parameters,
        refused=refused,
    )


def _request(
    algorithm: AlgorithmConfig, pairs: Sequence[tuple[ScoredGroup, ...]], seed: int
) -> tuple[ProbeRequest, dict[str, str]]:
    """Return what to measure, and the estimators that do not accept the rewards."""
    rewards, valid = reward_matrix([group for pair in pairs for group in pair], torch.device("cpu"))
    parameters = parameters_of(algorithm, Mix(lam=None if algorithm.lam == "adaptive" else fixed_lam(algorithm.lam)))
    own = [name for name in (algorithm.advantage, *algorithm.shadow) if ":" in name]
    names = tuple(dict.fromkeys((*ADVANTAGE_NAMES, *own)))
    refused = dict(refusals(names, rewards, algorithm.k, valid, parameters))
    if wrong := [refused[name] for name in SIZED if name in refused]:
        raise RunError(wrong[0])
    n, k = algorithm.group_size, algorithm.k
    sizes = sorted({size for size in (k + 1, -(-3 * k // 2), 2 * k, 3 * k, 4 * k, n, 2 * n) if k < size <= 2 * n})
    request = ProbeRequest(
        prompts=tuple(pairs),
        names=tuple(name for name in names if name not in refused),
        ks=(k,) * len(pairs),
        parameters=parameters,
        sizes=tuple(sizes),
        seed=seed,
    )
    return request, refused
