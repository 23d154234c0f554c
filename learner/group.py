"""All learner ranks together: the `Learner` that the loop drives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from learner.worker import LearnerWorker
from maxpo.config import Config
from maxpo.deadline import wait_for
from maxpo.types import Receiver, StepBatch, StepResult, WeightManifest


class LearnerGroup:
    """Owns the learner actors; each call goes to all ranks and has a deadline."""

    def __init__(self, config: Config, device: str, sync_backend: str, actor_options: Sequence[dict[str, Any]]) -> None:
        """Create one actor for each entry of `actor_options`; `start` makes them ready."""
        self._config = config
        remote: Any = ray.remote(LearnerWorker)
        self._actors: dict[str, Any] = {
            f"learner rank {rank}": remote.options(**options).remote(config, rank, device, sync_backend)
            for rank, options in enumerate(actor_options)
        }
        self.version = -1

    def begin_start(self) -> None:
        """Start all ranks without waiting, so that engines can start meanwhile."""
        timeout = self._config.learner.start_timeout_s
        first = next(iter(self._actors))
        rendezvous = {first: self._actors[first].serve_rendezvous.remote()}
        host, port = wait_for(rendezvous, timeout_s=timeout, doing="opening the rendezvous", ray=ray)[first]
        self._starting = {name: actor.start.remote(host, port) for name, actor in self._actors.items()}

    def finish_start(self) -> int:
        """Wait until all ranks are ready; the number of parameters of the model."""
        timeout = self._config.learner.start_timeout_s
        return max(wait_for(self._starting, timeout_s=timeout, doing="starting", ray=ray).values())

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
        limit = 4 * self._config.sync.timeout_s
        results = self._call("publish", limit, "sending weights", self.version, list(receivers))
        manifest: WeightManifest = results["learner rank 0"]
        return replace(manifest, metrics={"time/sync_s": time.perf_counter() - started})

    def save(self, folder: Path) -> None:
        """Write what an optimizer step changes to `folder`, which every rank must see."""
        folder.mkdir(parents=True, exist_ok=True)
        self._call("save", self._config.learner.step_timeout_s, "writing a checkpoint", str(folder.resolve()))

    def load(self, folder: Path, version: int) -> None:
        """Go on from what `save` wrote; the next `publish` sends it as `version`."""
        self._call("load", self._config.learner.start_timeout_s, "reading a checkpoint", str(folder.resolve()))
        self.version = version - 1

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        self._call("export", self._config.learner.step_timeout_s, "writing the model", str(target.resolve()))

    def shutdown(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)

    def _call(self, method: str, timeout_s: float, doing: str, *args: Any) -> dict[str, Any]:
        refs = {name: getattr(actor, method).remote(*args) for name, actor in self._actors.items()}
        return wait_for(refs, timeout_s=timeout_s, doing=doing, ray=ray)
