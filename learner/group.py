"""All learner ranks together: the `Learner` that the loop drives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
from ray import ObjectRef

from learner.worker import LearnerWorker
from maxpo.batches.samples import Sample
from maxpo.config import Config
from maxpo.errors import LateError, LearnerLostError, RemoteError
from maxpo.estimators.probe import ProbePart, ProbeRequest
from maxpo.runtime.output import output_file
from maxpo.runtime.ray_calls import RemoteMethod, actor_is_lost, ready_of, told, wait_for
from maxpo.runtime.waits import waiting
from maxpo.types import Receiver, StepBatch, StepResult, WeightManifest

R = TypeVar("R")


class LearnerActor(Protocol):
    """The handle of a `LearnerWorker` in an actor."""

    serve_rendezvous: RemoteMethod[tuple[str, int]]
    start: RemoteMethod[tuple[int, int]]
    ping: RemoteMethod[None]
    update: RemoteMethod[dict[str, float]]
    logprobs: RemoteMethod[list[list[float]]]
    probe: RemoteMethod[ProbePart]
    publish: RemoteMethod[WeightManifest | None]
    save: RemoteMethod[None]
    saved: RemoteMethod[bool]
    load: RemoteMethod[None]
    export: RemoteMethod[None]


class StepInProgress:
    """A training step that was begun on all ranks."""

    def __init__(
        self,
        group: LearnerGroup,
        refs: Mapping[str, ObjectRef[dict[str, float]]],
        doing: str,
        limit_s: float,
        wake: Callable[[], None],
    ) -> None:
        """Listen for the end of each call. See `LearnerGroup.begin_update`."""
        self._group, self._refs, self._doing = group, refs, doing
        self._began, self._limit_s = time.monotonic(), limit_s
        self._futures = {name: ref.future() for name, ref in refs.items()}
        for future in self._futures.values():
            future.add_done_callback(lambda _: wake())
        self._listed = ExitStack()
        self._listed.enter_context(waiting(doing, self._missing, limit_s))

    def done(self) -> bool:
        """Return True if all ranks have ended the step, one has failed, or the time is over."""
        failed = any(future.exception() is not None for future in self._futures.values() if future.done())
        return failed or not self._missing() or time.monotonic() >= self._began + self._limit_s

    def result(self) -> StepResult:
        """Wait for the step, and return its metrics.

        Raises:
            LearnerLostError: a rank died or did not end the step in time.
            RemoteError: a rank raised.
        """
        self._listed.close()
        metrics = self._group.results(self._refs, self._limit_s, self._doing, since=self._began)
        return StepResult(metrics=metrics["learner rank 0"])

    def _missing(self) -> list[str]:
        return [name for name, future in self._futures.items() if not future.done()]


class LearnerGroup:
    """The learner's actors. Each call goes to all ranks and has a deadline."""

    def __init__(
        self,
        config: Config,
        device: str,
        sync_backend: str,
        options: Callable[[int], Mapping[str, object]],
        log_folder: Path | None = None,
    ) -> None:
        """Create `learner.ranks` actors, which `begin_start` and `finish_start` make ready.

        Args:
            config: a checked configuration.
            device: cpu or cuda.
            sync_backend: shm, gloo, nccl or ipc.
            options: Ray options of a rank's actor, called again when the rank is restarted.
            log_folder: folder for the actors' output. None: it stays in Ray's logs.
        """
        self._config, self._log_folder = config, log_folder
        remote: Any = ray.remote(LearnerWorker)  # Ray's types know no handles
        self._new_actors: Callable[[], dict[str, LearnerActor]] = lambda: {
            (name := f"learner rank {rank}"): remote.options(**options(rank)).remote(
                config, rank, device, sync_backend, output_file(log_folder, name)
            )
            for rank in range(config.learner.ranks)
        }
        self._actors = self._new_actors()
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
        """Wait until all ranks are ready, and return the number of parameters of the model."""
        timeout = self._config.run.start_timeout_s
        started = wait_for(self._starting, timeout_s=timeout, doing="starting")
        self._pids = {name: pid for name, (pid, _) in started.items()}
        return max(parameters for _, parameters in started.values())

    def restart(self) -> None:
        """Replace all ranks, in whatever state, by new ones that hold the model before its first step.

        Raises:
            LearnerLostError: the new ranks did not start.
        """
        self.shutdown()
        self._actors = self._new_actors()
        self.version = -1
        try:
            self.begin_start()
            self.finish_start()
        except RemoteError as error:
            raise LearnerLostError(str(error)) from error

    def begin_update(self, batch: StepBatch, wake: Callable[[], None]) -> StepInProgress:
        """Begin one training step on all ranks. `wake` is called, in any thread, when a rank has ended it."""
        shared = ray.put(batch)
        refs = {name: actor.update.remote(shared) for name, actor in self._actors.items()}
        return StepInProgress(self, refs, f"step {batch.step}", self._config.learner.step_timeout_s, wake)

    def update(self, batch: StepBatch) -> StepResult:
        """Run one training step on all ranks."""
        return self.begin_update(batch, lambda: None).result()

    def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return the policy's log-probability of each token of each sample in nats, 0 outside the loss mask."""
        limit = self._config.learner.step_timeout_s
        return self._call(lambda rank: rank.logprobs.remote(samples), limit, "scoring samples")["learner rank 0"]

    def probe(self, request: ProbeRequest) -> list[ProbePart]:
        """Measure the gradients of estimators on scored groups; return what each rank has measured."""
        shared, limit = ray.put(request), self._config.learner.step_timeout_s
        return list(self._call(lambda rank: rank.probe.remote(shared), limit, "probing").values())

    def publish(self, receivers: Sequence[Receiver], *, again: bool = False) -> WeightManifest:
        """Send the current weights to the engines.

        Args:
            receivers: the engines.
            again: send under the version of the last call instead of the next version.
        """
        started = time.perf_counter()
        self.version += not again
        # The senders have deadlines of their own, whose errors name the engine. This one only catches a lost sender.
        # It is shorter than that of the ranks' own collectives, so that a hanging rank is reported as such.
        limit = min(4 * self._config.sync.timeout_s, 0.9 * self._config.learner.step_timeout_s)
        version, engines = self.version, list(receivers)
        results = self._call(lambda rank: rank.publish.remote(version, engines), limit, "sending weights")
        manifest = results["learner rank 0"]
        assert manifest is not None
        return replace(manifest, metrics={"time/sync_s": time.perf_counter() - started})

    def save(self, folder: Path, *, policy: bool) -> Callable[[], None]:
        """Copy everything that an optimizer step changes.

        Args:
            folder: an existing folder that every rank sees.
            policy: also write the policy, as a Hugging Face folder.

        Returns:
            A function that waits until the copy is written to `folder`.
        """
        doing, limit = "writing a checkpoint", self._config.learner.step_timeout_s
        (folder / "learner").mkdir()
        path = str(folder.resolve())
        self._call(lambda rank: rank.save.remote(path, policy), limit, doing)

        def written() -> None:
            # Many short calls instead of one that waits, which would keep the ranks from training meanwhile.
            end = time.monotonic() + limit
            while not all(self._call(lambda rank: rank.saved.remote(), limit, doing).values()):
                if time.monotonic() > end:
                    raise LateError(f"the learner did not finish {doing} within {limit:g} s")
                time.sleep(0.05)

        return written

    def load(self, folder: Path, version: int) -> None:
        """Continue from the files that `save` wrote. The next `publish` sends these weights as `version`."""
        path, limit = str(folder.resolve()), self._config.run.start_timeout_s
        self._call(lambda rank: rank.load.remote(path), limit, "reading a checkpoint")
        self.version = version - 1

    def export(self, target: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        path, limit = str(target.resolve()), self._config.learner.step_timeout_s
        self._call(lambda rank: rank.export.remote(path), limit, "writing the model")

    def shutdown(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)  # pyright: ignore[reportArgumentType]

    def _call(self, call: Callable[[LearnerActor], ObjectRef[R]], timeout_s: float, doing: str) -> dict[str, R]:
        """Call all ranks and return their results by name.

        Raises:
            LearnerLostError: a rank died or does not answer.
            RemoteError: a rank raised.
        """
        return self.results({name: call(actor) for name, actor in self._actors.items()}, timeout_s, doing)

    def results(
        self, refs: Mapping[str, ObjectRef[R]], timeout_s: float, doing: str, *, since: float | None = None
    ) -> dict[str, R]:
        """Return the results of calls by the name of the rank. See `wait_for` for the arguments.

        Raises:
            LearnerLostError: a rank died or does not answer.
            RemoteError: a rank raised.
        """
        try:
            return wait_for(refs, timeout_s=timeout_s, doing=doing, since=since)
        except LateError as error:
            raise LearnerLostError(str(error)) from error
        except RemoteError as error:
            # The first rank with an error may be a neighbour of the rank that died.
            if dead := self._dead():
                raise LearnerLostError("\n".join(self._death(name, doing, dead[name]) for name in dead)) from error
            raise

    def _dead(self) -> dict[str, Exception]:
        """Return Ray's error for each rank whose process is gone. A busy rank does not answer, but is not gone."""
        refs = {name: actor.ping.remote() for name, actor in self._actors.items()}
        ready, _ = ready_of(list(refs.values()), num_returns=len(refs), timeout=5.0)
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
        return f"{name} died while {doing}: {told(cause, output_file(self._log_folder, name), self._pids.get(name))}"
