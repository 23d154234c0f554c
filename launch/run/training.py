"""A training run, from a checked configuration to an exported model."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from rich.console import Console

from launch.cluster.head import reach
from launch.cluster.paths import with_absolute_paths
from launch.cluster.ray_cluster import own_logs
from launch.cluster.system import System, system
from launch.run.folder import locked, open_run
from launch.run.readiness import get_ready
from launch.run.restarts import with_restarts
from launch.run.resuming import check_learner_state, with_date
from launch.run.signals import StopRequest, stop_on_signal
from launch.run.watchdog import Watchdog
from launch.run.wording import banner, resume_command
from launch.terminal.printing import say
from launch.terminal.progress import Terminal, comparison, counts, timing
from maxpo.configure.loading import LoadedConfig
from maxpo.data.order import Mixture, PromptStream
from maxpo.errors import RunError
from maxpo.files import replacing
from maxpo.loop.observer import Observer
from maxpo.loop.state import RunResult, restore
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt


def run_training(loaded: LoadedConfig, console: Console) -> int:
    """Train as configured, and print the tables at the end. Return the exit code."""
    loaded = with_absolute_paths(with_date(loaded))
    config = loaded.config
    reach(config.ray)
    ready = get_ready(loaded, say=partial(say, console))
    say(console, f"{banner(config, ready.train, ready.held_out)}\n{ready.tested}")
    with locked(Path(config.run.dir), config.run.name, console):
        return _Run(loaded, console, ready.train, ready.held_out).train()


class _Run:
    """One run in its folder."""

    def __init__(self, loaded: LoadedConfig, console: Console, prompts: Mixture, held_out: list[Prompt]) -> None:
        """Open the run folder and find the checkpoint to continue from."""
        self._config, self._console = loaded.config, console
        self._prompts, self._held_out = prompts, held_out
        self._folder, self._source, self._checkpoints = open_run(loaded, console)
        self._exported = self._folder / "policy"
        if self._source is not None:
            # A state that cannot be read, or does not fit these prompts, must raise before anything is started.
            restore(self._source, RunResult(), self._stream())
            check_learner_state(self._config, self._source)

    def train(self) -> int:
        """Start the cluster and the workers, train, and print the results. Return the exit code."""
        config, log_folder = self._config, self._folder / "log"
        with (
            stop_on_signal(self._console, config.checkpoint.stop_within_s) as stop,
            Terminal(self._console, config.run.steps, config.algorithm.k) as terminal,
            Watchdog(terminal, config.run.stall_timeout_s, log_folder) as observer,
            system(config, log_folder) as running,
        ):
            placement = running.placement
            say(
                self._console,
                f"{running.parameters / 1e6:.2f} M parameters on {placement.learner_device}, weight sync by "
                f"{placement.sync_backend}",
            )
            self._say_nodes(running)
            attempt = partial(self._attempt, running, observer, stop)
            restart = partial(self._restart, running)
            try:
                result = with_restarts(attempt, self._source, self._checkpoints, restart, config, self._console)
            except RunError as error:
                self._checkpoints.abandon(timeout_s=10.0)
                self._add_advice(error)
                raise
        self._print_results(result)
        if not result.stopped and self._checkpoints.missing_copy:
            raise RunError(
                f"the run is complete, but its newest checkpoint has no copy: {self._checkpoints.missing_copy}"
            )
        return stop.exit_code if result.stopped else 0

    def _attempt(
        self, running: System, observer: Observer, stop: StopRequest, start: Path | None, resumed_step: int | None
    ) -> RunResult:
        """Train from a checkpoint or from the beginning, and export the policy."""
        config = self._config
        log = RunLog(
            self._folder,
            tensorboard=config.tracking.tensorboard,
            save_rollouts=config.tracking.save_rollouts,
            resumed_step=resumed_step,
        )
        with closing(log):
            result = Trainer(
                config,
                self._stream(),
                self._held_out,
                running.rollouts,
                running.learner,
                log,
                observer,
                should_stop=stop.asked,
                checkpoints=self._checkpoints,
            ).run(start)
        # A part of the attempt, so that a learner that dies during the export is started again.
        with replacing(self._exported) as partial_folder:
            running.learner.export(partial_folder)
        return result

    def _restart(self, running: System) -> None:
        running.restart_learner()
        self._say_nodes(running)

    def _say_nodes(self, running: System) -> None:
        if self._config.cluster.nodes > 1:
            say(self._console, running.groups.describe())

    def _stream(self) -> PromptStream:
        return PromptStream(self._prompts, self._config.run.seed)

    def _add_advice(self, error: RunError) -> None:
        """Add to an error where the output of the workers is, and how to continue the run."""
        logs = own_logs(self._config, self._folder / "log") or "Ray's logs on their nodes"
        error.add_note(f"The output of the workers is in {logs}.")
        newest = self._checkpoints.newest_written()
        go_on = f"The newest checkpoint is {newest}; go on with: {resume_command(self._folder)}"
        error.add_note(go_on if newest else "There is no checkpoint to go on from.")

    def _print_results(self, result: RunResult) -> None:
        console = self._console
        if result.evaluations:
            say(console, "Unbiased estimates; in brackets 95 % intervals over prompts")
            console.print(comparison(result))
        if result.history:
            console.print(timing(result))
        say(console, counts(result))
        say(console, f"run folder      {self._folder}\nexported model  {self._exported}")
        if result.stopped:
            say(console, f"stopped after step {result.steps} of {self._config.run.steps}")
            if result.saved_step:
                say(console, f"saved at step {result.saved_step}; go on with: {resume_command(self._folder)}")
