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
from maxpo.estimators.k_schedule import PassRates
from maxpo.files import replacing
from maxpo.loop.observer import Observer
from maxpo.loop.state import RunResult, restore
from maxpo.loop.train import Trainer
from maxpo.tracking.run_log import RunLog
from maxpo.types import Prompt


def run_training(loaded: LoadedConfig, console: Console) -> int:
    """Train as configured, and print the tables at the end. Return the exit code."""
    loaded = with_absolute_paths(with_date(loaded))
=======
    loaded = with_date(loaded)
    loaded = replace(loaded, config=for_all_nodes(loaded.config))
>>>>>>> 3215fd4 (All checks before a run, with all problems in one list)
    config = loaded.config
    reach(config.ray)
    ready = get_ready(loaded, say=partial(say, console))
    say(console, f"{banner(config, ready.train, ready.held_out)}\n{ready.tested}")
    with locked(Path(config.run.dir), config.run.name, console):
<<<<<<< HEAD
        return _Run(loaded, console, prompts, held_out).train()
