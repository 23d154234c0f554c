"""Runs: from a checked configuration to a trained model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from launch.cluster.head import reach
from launch.cluster.paths import for_all_nodes
from launch.cluster.ray_cluster import own_logs
from launch.cluster.system import system
from launch.run.folder import _open, locked
from launch.run.preflight import load_data
from launch.run.restarts import with_restarts
from launch.run.signals import stop_on_signal
from launch.run.watchdog import Watchdog
from launch.run.wording import banner, resume_command
from launch.terminal.printing import say
from launch.terminal.progress import Terminal, comparison, counts, timing
from maxpo.checkpoints.manifest import read_state
from maxpo.configure.loading import LoadedConfig
from maxpo.data.order import Mixture, PromptStream
from maxpo.errors import RunError
from maxpo.files import replacing
from maxpo.loop.state import RunResult
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt


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
                result = Trainer(
                    config,
                    stream,
                    held_out,
                    running.rollouts,
                    running.learner,
                    log,
                    observer,
                    should_stop=lambda: bool(asked),
                    checkpoints=checkpoints,
                ).run(start)
            # Here, so that a learner that dies meanwhile is started again for it.
            with replacing(exported) as fresh:
                running.learner.export(fresh)
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
