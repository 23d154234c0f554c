"""The begin of a training: Ray starts while the libraries are imported and the checks are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from launch.cluster.head import reach
from launch.cluster.paths import with_absolute_paths
from launch.cluster.ray_cluster import cluster
from launch.cluster.ray_environment import cluster_address
from launch.run.date import with_date
from launch.run.signals import PreemptedError, stop_on_signal
from launch.terminal.printing import say
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.runtime.background import Background

if TYPE_CHECKING:  # their imports take seconds, which the thread of the checks spends
    from launch.run.readiness import Ready


def run_training(loaded: LoadedConfig, console: Console) -> int:
    """Check everything, train as configured, and print the tables at the end. Return the exit code."""
    loaded = with_absolute_paths(with_date(loaded))
    config = loaded.config
    reach(config.ray)
    with stop_on_signal(console, config.checkpoint.stop_within_s) as stop:
        checks = Background(partial(_check, loaded, console))
        with _cluster_beside(checks, config) as gpus:
            ready = checks.result()
            from launch.run.training import train

            return train(loaded, ready, gpus, stop, console)


def _check(loaded: LoadedConfig, console: Console) -> Ready:
    """Import the libraries of a training, and make all checks."""
    from launch.run import training  # noqa: F401
    from launch.run.readiness import get_ready

    return get_ready(loaded, say=partial(say, console))


@contextmanager
def _cluster_beside(checks: Background[Ready], config: Config) -> Iterator[float]:
    """Connect to the cluster, or start one meanwhile. What the checks find is raised before an error of the cluster.

    Ray runs in this thread: its processes end with the thread that has started them, and signals come here.
    """
    if cluster_address(config.ray) is not None:
        checks.result()  # a cluster that others use hears of no run with wrong settings
    with ExitStack() as ending:
        try:
            gpus = ending.enter_context(cluster(config, Path(config.run.dir, config.run.name, "log")))
        except PreemptedError:
            raise  # at once
        except Exception:
            checks.result()
            raise
        yield gpus
