"""All learner ranks together: the `Learner` that the loop drives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from learner.worker import LearnerWorker
from maxpo.config import Config
from maxpo.errors import LateError, LearnerLostError, RemoteError
from maxpo.runtime.ray_calls import actor_is_lost, told, wait_for
from maxpo.types import Receiver, StepBatch, StepResult, WeightManifest


class LearnerGroup:
    """Owns the learner actors; each call goes to all ranks and has a deadline."""

    def __init__(
        self,
        config: Config,
        device: str,
        sync_backend: str,
        options: Callable[[int], dict[str, Any]],
        log_folder: Path | None = None,
    ) -> None:
        """Create `learner.ranks` actors; `begin_start` and `finish_start` make them ready.

        Args:
            config: a checked configuration.
            device: cpu or cuda.
            sync_backend: gloo, nccl or ipc.
            options: Ray options of a rank's actor, asked for again when it is restarted.
            log_folder: where the actors' output is found after the run, for messages.
        """
        self._config, self._log_folder = config, log_folder
        remote: Any = ray.remote(LearnerWorker)
        self._create = lambda: {
            f"learner rank {rank}": remote.options(**options(rank)).remote(config, rank, device, sync_backend)
            for rank in range(config.learner.ranks)
        }
        self._actors: dict[str, Any] = self._create()
        self._pids: dict[str, int] = {}
        self.version = -1

    def begin_start(self) -> None:
        """Start all ranks without waiting, so that engines can start meanwhile."""
        timeout = self._config.run.start_timeout_s
        first = next(iter(self._actors))
        rendezvous = {first: self._actors[first].serve_rendezvous.remote()}
        host, port = wait_for(rendezvous, timeout_s=timeout, doing="opening the rendezvous")[first]
        self._starting = {name: actor.start.remote(host, port) for name, actor in self._actors.items()}

    def finish_start(self) -> int:
        """Wait until all ranks are ready; the number of parameters of the model."""
        timeout = self._config.run.start_timeout_s
        started = wait_for(self._starting, timeout_s=timeout, doing="starting")
        self._pids = {name: pid for name, (pid, _) in started.items()}
        return max(parameters for _, parameters in started.values())

    def restart(self) -> None:
        """Replace all ranks, whatever state they are in, by new ones that hold the model as it was at first.

        Raises:
            LearnerLostError: they did not start.
        """
        self.shutdown()
        self._actors = self._create()
        self.version = -1
        try:
            self.begin_start()
            self.finish_start()
        except RemoteError as error:
            raise LearnerLostError(str(error)) from error

    def update(self, batch: StepBatch) -> StepResult:
        """One training step on all ranks."""
        shared = ray.put(batch)
        results = self._call("update", self._config.learner.step_timeout_s, f"step {batch.step}", shared)
        return StepResult(metrics=results["learner rank 0"])

    def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
        """Send the current weights to the engines under the next version; `again`: under the version they had."""
        started = time.perf_counter()
        self.version += not again
        # The senders have deadlines of their own that name the engine; this one only catches a lost sender.
        # It comes before the limit of the ranks' own collectives, so that a rank that hangs is seen to hang.
        limit = min(4 * self._config.sync.timeout_s, 0.9 * self._config.learner.step_timeout_s)
        results = self._call("publish", limit, "sending weights", self.version, list(receivers))
        manifest: WeightManifest = results["learner rank 0"]
        return replace(manifest, metrics={"time/sync_s": time.perf_counter() - started})

    def save(self, folder: Path, *, policy: bool) -> Callable[[], None]:
        """Copy what an optimizer step changes; the function returned ends when `folder` has it.

        Args:
            folder: exists, and every rank must see it.
            policy: also write the policy, as a Hugging Face folder.
        """
        doing, limit = "writing a checkpoint", self._config.learner.step_timeout_s
        (folder / "learner").mkdir()
        self._call("save", limit, doing, str(folder.resolve()), policy)

        def written() -> None:
            # Asked again and again instead of once: a call that waits would keep the ranks from training meanwhile.
            end = time.monotonic() + limit
            while not all(self._call("saved", limit, doing).values()):
                if time.monotonic() > end:
                    raise LateError(f"the learner did not finish {doing} within {limit:g} s")
                time.sleep(0.05)

        return written

    def load(self, folder: Path, version: int) -> None:
        """Go on from what `save` wrote; the next `publish` sends it as `version`."""
        self._call("load", self._config.run.start_timeout_s, "reading a checkpoint", str(folder.resolve()))
        self.version = version - 1

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        self._call("export", self._config.learner.step_timeout_s, "writing the model", str(target.resolve()))

    def shutdown(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)

    def _call(self, method: str, timeout_s: float, doing: str, *args: Any) -> dict[str, Any]:
        """Call all ranks.

        Raises:
            LearnerLostError: a rank died or does not answer.
            RemoteError: a rank raised.
        """
        refs = {name: getattr(actor, method).remote(*args) for name, actor in self._actors.items()}
        try:
            return wait_for(refs, timeout_s=timeout_s, doing=doing)
        except LateError as error:
            raise LearnerLostError(str(error)) from error
        except RemoteError as error:
            # The first to complain may be a neighbour of the one that died.
            if dead := self._dead():
                raise LearnerLostError("\n".join(self._death(name, doing, dead[name]) for name in dead)) from error
            raise

    def _dead(self) -> dict[str, Exception]:
        """The ranks whose process is gone, and what Ray says of it; one that is busy does not count."""
        refs = {name: actor.ping.remote() for name, actor in self._actors.items()}
        ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=5.0)
        dead: dict[str, Exception] = {}
        for name, ref in refs.items():
            if ref in ready:
                try:
                    ray.get(ref)
                except Exception as error:
                    if not actor_is_lost(error):
                        raise
                    dead[name] = error
        return dead

    def _death(self, name: str, doing: str, cause: Exception) -> str:
        return f"{name} died while {doing}: {told(cause, self._log_folder, self._pids.get(name))}"
