"""The command `maxpo evaluate`: a model on the held-out prompts, without a learner."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import yaml
from rich.console import Console

from launch.cluster.head import reach
from launch.cluster.paths import for_all_nodes
from launch.cluster.placement import place
from launch.cluster.placement_groups import room_for
from launch.cluster.ray_cluster import cluster, own_logs
from launch.run.preflight import load_data
from launch.terminal.printing import say
from launch.terminal.tables import report_table
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError, RunError
from maxpo.evaluation.figures import EvalReport, PromptResult
from maxpo.evaluation.measure import measure
from maxpo.evaluation.report import report
from maxpo.evaluation.result_file import EVAL_FILE, write_evaluation
from maxpo.tracking.run_log import RunLog
from rollout.pool import RolloutPool


def evaluate_model(loaded: LoadedConfig, model: Path, output: Path | None, console: Console, *, as_json: bool) -> int:
    """Evaluate the model in a Hugging Face folder, write `eval.json` and the completions, and print what was found.

    Args:
        loaded: the settings; `model.path` is `model`.
        model: the folder.
        output: where the files go; None: `run.dir`/`run.name`-eval.
        console: where the progress is said and, without `as_json`, the table goes.
        as_json: print JSON to standard output instead.

    Raises:
        InputError: the output folder holds something already.
        RunError: no prompt has enough valid samples.
    """
    config = loaded.config
    folder = output or Path(config.run.dir) / f"{config.run.name}-eval"
    _make(folder)
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


def _make(folder: Path) -> None:
    """Create the folder; what an evaluation leaves that did not end is no obstacle.

    Raises:
        InputError: it holds something else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"--out {folder} cannot be used: {error.strerror}") from error
    if others := [name for name in found if name not in ("log", "rollouts")]:
        raise InputError(
            f"--out {folder}: there is {others[0]} in it already; name a new folder with --out, or remove that one"
        )


def _run(loaded: LoadedConfig, folder: Path, console: Console) -> tuple[EvalReport, list[PromptResult]]:
    config = for_all_nodes(loaded.config)
    reach(config.ray)
    _, held_out = load_data(config, evaluation=True, say=partial(say, console))
    log = RunLog(folder, tensorboard=False, save_rollouts=len(held_out))
    with cluster(config, folder / "log") as gpus:
        places = place(config, gpus=gpus, with_learner=False)
        with room_for(places, config) as room:
            logs = own_logs(config, folder / "log")
            rollouts = RolloutPool(config, places.rollout_device, places.sync_backend, room.engine, logs)
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
        raise RunError(f"{error}: their outcomes are in {folder / 'rollouts'}") from error
