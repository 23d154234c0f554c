"""Runs: from a checked configuration to a trained model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from launch.cluster import own_logs, reach
from launch.preflight import load_data
from launch.progress import Terminal, comparison, counts, timing
from launch.rayenv import cluster_address
from launch.resume import describe_changes, find_checkpoint, go_back_to, locked, remote_store
from launch.say import say
from launch.signals import stop_on_signal
from launch.system import system
from launch.watchdog import Watchdog
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import read_manifest, read_state
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.data.order import Mixture, PromptStream
from maxpo.errors import InputError, LearnerLostError, RunError
from maxpo.loop.state import RunResult
from maxpo.loop.train import train
from maxpo.tracking.run_log import METRICS_FILE, RunLog
from maxpo.types import Prompt

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a job's driver."""


def banner(config: Config, prompts: Mixture) -> str:
    """What one step means, in numbers."""
    a = config.algorithm
    sequences = a.prompts_per_step * a.group_size
    return (
        f"{config.run.steps} steps; one step: {a.prompts_per_step} prompts x {a.group_size} completions = {sequences} "
        f"sequences of up to {config.data.max_prompt_tokens} + {config.rollout.max_new_tokens} tokens, "
        f"{a.minibatches} optimizer step(s) of {a.prompts_per_step // a.minibatches} prompts\n"
        f"{passes(prompts, config.run.steps * a.prompts_per_step)}; "
        f"advantages {a.advantage}"
        + (f" with K = {a.k}" if a.advantage in ("maxpo", "pkpo_loo_minus_one") else "")
        + f"; {config.rollout.workers} rollout worker(s), {config.learner.ranks} learner rank(s)"
    )


def for_all_nodes(config: Config) -> Config:
    """The settings as processes on other nodes need them: they start in other folders, except those of a job."""
    if cluster_address(config.ray) is None or JOB in os.environ:
        return config
    deepspeed = config.learner.deepspeed
    return replace(
        config,
        model=replace(config.model, path=str(Path(config.model.path).absolute())),
        learner=replace(config.learner, deepspeed=deepspeed and str(Path(deepspeed).absolute())),
    )


def resume_command(folder: Path) -> str:
    """How a run goes on: a job's settings and files are only there for as long as it runs."""
    return (
        "the command that submitted it, and checkpoint.resume=auto" if JOB in os.environ else f"maxpo resume {folder}"
    )


def passes(prompts: Mixture, draws: int) -> str:
    """How often a run sees its prompts."""
    total = f"{len(prompts)} training prompts"
    if len(prompts.parts) == 1:
        return f"{total} = {draws / len(prompts):.2f} passes"
    each = (
        f"{draws * weight / sum(prompts.weights) / len(part):.2f} of {name}"
        for name, weight, part in zip(prompts.names, prompts.weights, prompts.parts, strict=True)
    )
    return f"{total}, passes: {', '.join(each)}"


def run_training(loaded: LoadedConfig, console: Console) -> int:
    """Train as configured; returns the exit code. Prints the tables at the end."""
    config = for_all_nodes(loaded.config)
    reach(config.ray)
    train_prompts, held_out = load_data(config, say=partial(say, console))
    say(console, banner(config, train_prompts))
    with locked(Path(config.run.dir), config.run.name, console):
        return _run(replace(loaded, config=config), console, train_prompts, held_out)


def _run(loaded: LoadedConfig, console: Console, train_prompts: Mixture, held_out: list[Prompt]) -> int:
    config = loaded.config
    folder, source, checkpoints = _open(loaded, console)
    if source is not None:
        # Before anything is started: the position must be one in these prompts.
        PromptStream(train_prompts, config.run.seed).load_state_dict(read_state(source)["stream"])
    exported = folder / "policy"
    with (
        stop_on_signal(console, config.checkpoint.stop_within_s) as asked,
        Terminal(console, config.run.steps, config.algorithm.k) as terminal,
        Watchdog(terminal, config.run.stall_timeout_s, folder / "log") as observer,
        system(config, folder / "log") as running,
    ):
        console.print(
            f"{running.parameters / 1e6:.2f} M parameters on {running.places.learner_device}, weight sync by "
            f"{running.places.sync_backend}",
            highlight=False,
        )

        def say_where() -> None:
            if config.cluster.nodes > 1:
                say(console, running.room.describe())

        def restart() -> None:
            running.restart_learner()
            say_where()

        say_where()

        def attempt(start: Path | None, resumed_step: int | None) -> RunResult:
            stream = PromptStream(train_prompts, config.run.seed)
            log = RunLog(
                folder,
                tensorboard=config.tracking.tensorboard,
                save_rollouts=config.tracking.save_rollouts,
                resumed_step=resumed_step,
            )
            with closing(log):
                result = train(
                    config,
                    stream,
                    held_out,
                    running.rollouts,
                    running.learner,
                    log,
                    observer,
                    should_stop=lambda: bool(asked),
                    checkpoints=checkpoints,
                    resume_from=start,
                )
            # Here, so that a learner that dies meanwhile is started again for it.
            fresh = folder / ".policy.new"
            shutil.rmtree(fresh, ignore_errors=True)
            running.learner.export(fresh)
            shutil.rmtree(exported, ignore_errors=True)
            fresh.rename(exported)
            return result

        try:
            result = with_restarts(attempt, source, checkpoints, restart, config, console)
        except RunError as error:
            checkpoints.abandon(timeout_s=10.0)
            logs = own_logs(config, folder / "log") or "Ray's logs on their nodes"
            error.add_note(f"The output of the workers is in {logs}.")
            newest = checkpoints.newest_written()
            go_on = f"The newest checkpoint is {newest}; go on with: {resume_command(folder)}"
            error.add_note(go_on if newest else "There is no checkpoint to go on from.")
            raise
    if result.evaluations:
        console.print("Unbiased estimates; in brackets 95 % intervals over prompts", highlight=False, markup=False)
        console.print(comparison(result))
    if result.history:
        console.print(timing(result))
    console.print(counts(result), highlight=False)
    console.print(f"run folder      {folder}\nexported model  {exported}", highlight=False, soft_wrap=True)
    if checkpoints.missing_copy and not result.stopped:
        raise RunError(f"the run is complete, but its newest checkpoint has no copy: {checkpoints.missing_copy}")
    if result.stopped:
        console.print(f"stopped after step {result.steps} of {config.run.steps}", highlight=False)
        if result.saved_step:
            console.print(f"saved at step {result.saved_step}; go on with: {resume_command(folder)}", highlight=False)
        return asked.exit_code
    return 0


def with_restarts(
    attempt: Callable[[Path | None, int | None], RunResult],
    source: Path | None,
    checkpoints: Checkpoints,
    restart: Callable[[], None],
    config: Config,
    console: Console,
) -> RunResult:
    """Train, and where the learner is lost, start it again from the newest good checkpoint, or from the beginning.

    Args:
        attempt: trains from a checkpoint, or from the beginning, after cutting the log after a step (None: it is new).
        source: the checkpoint of the first attempt.
        checkpoints: where the run saves.
        restart: starts the learner again.
        config: says how often, `learner.max_restarts`.
        console: where it is said.
    """
    step = None if source is None else read_manifest(source)["step"]
    lost: LearnerLostError | None = None
    for left in reversed(range(config.learner.max_restarts + 1)):
        try:
            if lost is not None:
                restart()
                # Only now: a write in the background may have waited for a rank that hung.
                checkpoints.abandon()
                newest, _ = checkpoints.newest_good()
                # A run that began with a checkpoint of another run, and has none of its own yet, begins there again.
                if newest is not None:
                    source, step = newest, read_manifest(newest)["step"]
                elif source is None:
                    step = -1
                text = f"going on from {source}" if source else "going on from the beginning"
                say(console, text)
            return attempt(source, step)
        except LearnerLostError as error:
            if not left:
                raise
            lost = error
            text = f"{error}\nstarting the learner again; {left - 1} restarts are left"
            say(console, text)
    raise AssertionError("unreachable")


def _open(loaded: LoadedConfig, console: Console) -> tuple[Path, Path | None, Checkpoints]:
    """The run folder, the checkpoint to go on from, and where new checkpoints go."""
    config, settings = loaded.config, to_yaml(loaded)
    folder, saving = Path(config.run.dir) / config.run.name, config.checkpoint
    checkpoints = Checkpoints(
        folder / "checkpoints",
        keep_last=saving.keep_last,
        keep_every=saving.keep_every,
        keep_best=saving.keep_best,
        attached={"config.yaml": settings, METRICS_FILE: folder / METRICS_FILE},
        asynchronous=saving.asynchronous,
        remote=remote_store(config),
        say=partial(say, console),
    )
    source = find_checkpoint(config, checkpoints, console)
    if source is not None:
        describe_changes(source, settings, console)
        go_back_to(source, checkpoints, console, named=saving.resume not in ("auto", "must"))
    if source is None or folder.resolve() not in source.resolve().parents:
        # A finished run without checkpoints is nothing to go on from either, but it is no leftover.
        try:
            _new_run_folder(config, replace=saving.resume == "auto" and not (folder / "policy").exists())
        except FileExistsError:
            raise
        except OSError as error:
            raise InputError(f"the run folder cannot be written: {error}") from error
    try:
        (folder / "config.yaml").write_text(settings, encoding="utf-8")
        if source is not None and not (folder / METRICS_FILE).exists() and (source / METRICS_FILE).exists():
            shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)  # the run folder was lost
    except OSError as error:
        raise InputError(f"the run folder cannot be written: {error}") from error
    return folder, source, checkpoints


def _new_run_folder(config: Config, *, replace: bool) -> None:
    """Create the run's folder.

    Args:
        config: `run.dir`, `run.name`, `run.overwrite`.
        replace: a folder that exists holds nothing to go on from and is replaced.

    Raises:
        FileExistsError: it exists, a run was begun in it, and `run.overwrite` is off.
    """
    folder = Path(config.run.dir) / config.run.name
    if folder.exists():
        never_began = {file.name for file in folder.rglob("*")} <= {"config.yaml", "log"}
        if not (config.run.overwrite or replace or never_began):
            raise FileExistsError(
                f"{folder} exists already: choose another run.name, or replace it with run.overwrite=true"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
