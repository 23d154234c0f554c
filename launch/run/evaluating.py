"""Evaluation of a model on the held-out prompts, without a learner."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import yaml
from rich.console import Console

from launch.cluster.head import reach
from launch.cluster.paths import with_absolute_paths
from launch.cluster.placement import place
from launch.cluster.placement_groups import placement_groups
from launch.cluster.ray_cluster import cluster, own_logs
from launch.run.destination import new_folder
from launch.run.readiness import get_ready
from launch.run.resuming import with_date
from launch.terminal.printing import say
from launch.terminal.tables import report_table
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import RunError
from maxpo.evaluation.figures import EvalReport, PromptResult
from maxpo.evaluation.measure import measure
from maxpo.evaluation.report import report
from maxpo.evaluation.result_file import EVAL_FILE, write_evaluation
from maxpo.tracking.run_log import RunLog
from rollout.pool import RolloutPool


def evaluate_model(loaded: LoadedConfig, model: Path, output: Path | None, console: Console, *, as_json: bool) -> int:
    """Evaluate the model in a Hugging Face folder, write `eval.json` and the completions, and print the figures.

    Args:
        loaded: the settings, with `model` as `model.path`.
        model: path of the model, for `eval.json`.
        output: folder of the files; None means `run.dir`/`run.name`-eval.
        console: gets the progress and, without `as_json`, the table.
        as_json: print JSON to standard output instead of the table.

    Raises:
        InputError: the output folder is not empty.
        RunError: no prompt has enough valid samples.
    """
    loaded = with_date(loaded)
    config = loaded.config
    folder = output or Path(config.run.dir) / f"{config.run.name}-eval"
    new_folder(folder)
    result, results = _run(loaded, folder, console)
    write_evaluation(folder / EVAL_FILE, str(model), yaml.safe_load(to_yaml(loaded)), result, results)
    if as_json:
        shown = {"model": str(model), "file": str(folder / EVAL_FILE), "samples": config.eval.samples}
        print(json.dumps(shown | asdict(result), indent=2))
        return 0
    console.print("Unbiased estimates; in brackets 95 % intervals over prompts", highlight=False, markup=False)
    console.print(report_table([result], [f"{config.eval.samples} completions each"]))
    say(console, f"results in {folder}")
    return 0


def _run(loaded: LoadedConfig, folder: Path, console: Console) -> tuple[EvalReport, list[PromptResult]]:
    config = with_absolute_paths(loaded).config
    reach(config.ray)
    held_out = get_ready(replace(loaded, config=config), say=partial(say, console), evaluation=True).held_out
    log = RunLog(folder, tensorboard=False, save_rollouts=len(held_out))
    with cluster(config, folder / "log") as gpus:
        placement = place(config, gpus=gpus, with_learner=False)
        with placement_groups(placement, config) as groups:
            logs = own_logs(config, folder / "log")
            rollouts = RolloutPool(config, placement.rollout_device, placement.sync_backend, groups.engine, logs)
            try:
                rollouts.begin_start(version=0)
                rollouts.finish_start()
                scored, results = measure(config.eval, held_out, rollouts, lambda group: None)
            finally:
                rollouts.shutdown()
    for name, groups in scored.items():
        log.log_rollouts(name, groups)
    try:
        return report(results, config.eval.k, greedy=config.eval.greedy), results
    except ValueError as error:
        raise RunError(f"{error}; the outcomes of the samples are in {folder / 'rollouts'}") from error
