"""All rollout workers together: the `Rollouts` that the loop drives."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray

from maxpo.config import Config
from maxpo.errors import LateError, LearnerLostError, RemoteError, RunError
from maxpo.runtime.ray_calls import failure, wait_for
from maxpo.runtime.waits import SIGNAL_S, waiting
from maxpo.seeds import derive_seed
from maxpo.types import Group, Prompt, Receiver, ScoredGroup, WeightManifest
from rollout.fleet import Fleet, is_loss
from rollout.scoring.verifier_pool import RewardPool
from rollout.slots import Slot, Slots
from rollout.worker import RolloutWorker


class RolloutPool:
    """Spreads prompts over workers, returns whole groups in the order of the prompts, and scores them.

    A worker that dies, or whose engine dies, is replaced: its groups are sampled by others, and the replacement
    serves from the next publish on.
    """

    def __init__(
        self,
        config: Config,
        device: str,
        sync_backend: str,
        options: Callable[[int], dict[str, Any]],
        log_folder: Path | None = None,
    ) -> None:
        """Create `rollout.workers` actors; `begin_start` and `finish_start` make them ready.

        Args:
            config: a checked configuration.
            device: cpu or cuda.
            sync_backend: gloo, nccl or ipc.
            options: Ray options of the actor with this number, asked for again when it is replaced.
            log_folder: where the actors' output is found after the run, for messages.
        """
        self._config = config.rollout
        self._backend = sync_backend
        self._seed = config.run.seed
        remote: Any = ray.remote(RolloutWorker)

        def create(number: int) -> Any:
            return remote.options(max_concurrency=1000, **options(number)).remote(
                config.model.path,
                config.rollout,
                config.environment,
                config.data.template_args,
                device=device,
                sync_backend=sync_backend,
                max_prompt_tokens=config.data.max_prompt_tokens,
                trust_remote_code=config.model.trust_remote_code,
                interface=config.cluster.interface,
            )

        self._fleet = Fleet(create, config.rollout.workers, config.rollout, log_folder)
        self._rewards = RewardPool(config.reward)
        self._resampled = 0
        self._syncing = False
        self._sleep_level = config.cluster.sleep_level if sync_backend == "ipc" else 0
        self._asleep = False
        self.republish: Callable[[Sequence[Receiver]], WeightManifest] | None = None
        """Sends the current weights once more, under their version, to the engines given. Used where all workers
        were lost between two syncs; without it that ends the run."""

    def begin_start(self, version: int | None = None) -> None:
        """Start all engines without waiting. `version`: see `RolloutWorker.start`."""
        self._fleet.begin_start(version)

    def finish_start(self) -> None:
        """Wait until all engines are ready."""
        self._fleet.finish_start()

    def receivers(self) -> list[Receiver]:
        """The engines, for `Learner.publish`: all that are alive now, restarted ones too; waits for one if need be."""
        self._fleet.poll()
        if self._asleep:
            self._ask("wake_up", "waking up")
            self._asleep = False
        self._ask("check_engine", "saying whether its engine is alive")
        self._fleet.wait_for_one()
        workers = self._config.tensor_parallel_size
        # In the order of their names, so that the same engines are the same list.
        engines = sorted(self._fleet.started.items())
        self._syncing = True
        return [Receiver(name=name, actor=actor, workers=workers) for name, actor in engines]

    def replace_lost(self) -> bool:
        """After a failed publish: whether a worker that died or hangs explains it, and it can be repeated.

        The workers left were stopped in the middle of the sync, which vLLM cannot begin anew, so they are restarted
        too.

        Raises:
            LearnerLostError: over nccl and ipc, where the learner's half may stay in the transfer for good.
        """
        time.sleep(1.0)  # The first to complain may be a neighbour of the one that died.
        before = self._fleet.started
        self._ask("sign_of_life", "giving a sign of life")
        left = self._fleet.started
        if len(left) == len(before):
            return False
        if self._backend != "gloo":
            gone = ", ".join(sorted(set(before) - set(left)))
            raise LearnerLostError(
                f"{gone} was lost in a transfer over {self._backend}, which the learner cannot give up"
            )
        for name in left:
            self._fleet.replace(name)
        return True

    def learner_restarts(self) -> None:
        """Called before the learner is started again: engines that it left in the middle of a sync are replaced.

        Those that share its GPUs are all replaced, and first: vLLM measures the free memory while it starts.
        """
        if self._sleep_level:
            self._fleet.replace_all()
            self._fleet.wait_for_all()
        elif self._syncing:
            for name in list(self._fleet.started):
                self._fleet.replace(name)
        self._syncing = self._asleep = False

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        draw: str,
        on_group: Callable[[Group], None] = lambda group: None,
        *,
        greedy: bool = False,
    ) -> list[Group]:
        """One group of `group_size` completions for each prompt.

        Sample i of a prompt is drawn with the seed hash(run seed, draw, prompt id) + i, so it depends neither on
        the worker nor on the order. Each worker holds as many groups as fill its engine, and one more to follow.

        Args:
            prompts: what to complete.
            group_size: completions of each.
            draw: names this sampling among all of the run, for example the step; equal draws sample equally.
            on_group: called with each group as it arrives.
            greedy: take the likeliest token each time instead.

        Raises:
            RemoteError: a request failed, or took longer than `rollout.generate_timeout_s` for a group.
            RunError: too many workers were lost, see `rollout.max_restarts`.
        """
        places = Slots(self._fleet, math.ceil(self._config.max_concurrent_sequences / group_size) + 1)
        todo = deque(enumerate(prompts))
        # In the order of their deadlines, since all have the same time.
        running: dict[Future[Group], tuple[int, Slot, float]] = {}
        # Calls report themselves here: `ray.wait` would look at all that are running for each that has ended.
        ended: SimpleQueue[Future[Group]] = SimpleQueue()
        groups: dict[int, Group] = {}
        # Above the worker's own limit, so that the worker's error, which knows more, comes first.
        limit = self._config.generate_timeout_s + 30

        def dispatch() -> None:
            """Fill the workers, the emptiest first."""
            self._fleet.poll()
            if not running:
                self._await_serving()
            while todo and (place := places.take()):
                index, prompt = todo.popleft()
                seed = derive_seed(self._seed, draw, prompt.prompt_id)
                ref = place.actor.generate.remote(
                    f"{draw}/{index}/{prompt.prompt_id}", prompt, group_size, seed, greedy=greedy
                )
                future = ref.future()
                running[future] = index, place, time.monotonic() + limit
                future.add_done_callback(ended.put)

        def next_ended() -> Future[Group]:
            """The first call that has ended."""
            while True:
                left = next(end for _, _, end in running.values()) - time.monotonic()
                try:
                    future = ended.get(timeout=max(0.0, min(left, SIGNAL_S)))
                except Empty:
                    future = None
                # Also where groups keep coming: they may come from another worker.
                self._fleet.check_health()
                if future is not None:
                    return future
                late = sorted({place.name for _, place, end in running.values() if end <= time.monotonic()})
                if late:
                    raise RemoteError(f"{', '.join(late)} did not return a group within {limit:g} s")

        while len(groups) < len(prompts):
            if todo:
                dispatch()
            with waiting("sampling", lambda: [place.name for _, place, _ in running.values()], limit):
                future = next_ended()
            index, place, _ = running.pop(future)
            places.give_back(place)
            try:
                groups[index] = future.result()
            except Exception as error:
                if not is_loss(error):
                    raise failure(place.name, "generating", error) from error
                self._fleet.lost(place.name, place.actor, error)
                todo.appendleft((index, prompts[index]))
                self._resampled += 1
                continue
            on_group(groups[index])
        return [groups[i] for i in range(len(prompts))]

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion of every group."""
        return self._rewards.score(groups)

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        """What every completion answers, see `RewardPool.answers`."""
        return self._rewards.answers(groups)

    def rest(self) -> None:
        """Where engines share the GPUs of the learner, they sleep until the next `receivers`, and it has the memory."""
        if self._sleep_level:
            self._fleet.wait_for_all()  # one that started while the learner trains would find its memory taken
            self._ask("sleep", "going to sleep", self._sleep_level)
            self._asleep = True

    def confirm(self, manifest: WeightManifest) -> None:
        """Compare what every engine received with what the learner sent. From then on restarted engines serve.

        Raises:
            RemoteError: an engine has another version, or a tensor arrived differently or not at all.
        """
        states = self._ask("weights_state", "reporting its weights")
        expected = dict(zip(manifest.names, manifest.digests, strict=True))
        for name, (version, ranks) in states.items():
            if version != manifest.version:
                raise RemoteError(f"{name} has weight version {version}, the learner published {manifest.version}")
            for rank, digests in enumerate(ranks):
                wrong = [tensor for tensor, digest in expected.items() if digests.get(tensor) != digest]
                extra = [tensor for tensor in digests if tensor not in expected]
                if wrong or extra:
                    raise RemoteError(
                        f"{name} (process {rank}) holds other weights than version {manifest.version} of the learner: "
                        f"{len(wrong) + len(extra)} of {len(expected)} tensors differ, first {(wrong + extra)[0]}"
                    )
        self._fleet.admit()
        self._syncing = False

    def metrics(self) -> dict[str, float]:
        """Memory of the workers, and their losses."""
        sizes = self._ask("memory_mib", "reporting its memory")
        return {
            "memory/rollout_rss_mib": max(sizes.values(), default=0.0),
            "rollout/restarts": float(self._fleet.restarts),
            "rollout/workers_alive": float(len(self._fleet.serving)),
            "rollout/groups_resampled": float(self._resampled),
        }

    def shutdown(self) -> None:
        """End engines, actors and verifier processes."""
        self._rewards.shutdown()
        self._fleet.shutdown()

    def _await_serving(self) -> None:
        """Where no worker serves, wait for a replacement and have it get the current weights."""
        while not self._fleet.serving:
            self._fleet.wait_for_one()
            if not self._fleet.ready:
                continue
            if self.republish is None:
                raise RunError("every rollout worker was lost, and nobody can send weights to their replacements")
            try:
                self.confirm(self.republish(self.receivers()))
            except RemoteError:
                if not self.replace_lost():
                    raise

    def _ask(self, method: str, doing: str, *args: Any) -> dict[str, Any]:
        """Call a method of all workers whose engines run.

        Those that turn out to be lost, or do not answer within `rollout.health_timeout_s`, are replaced and left out.
        """
        results: dict[str, Any] = {}
        end = time.monotonic() + self._config.health_timeout_s
        calls = [(name, actor, getattr(actor, method).remote(*args)) for name, actor in self._fleet.started.items()]
        for name, actor, ref in calls:
            try:
                left = max(0.0, end - time.monotonic())
                results |= wait_for({name: ref}, timeout_s=left, doing=doing)
            except LateError as error:
                self._fleet.lost(name, actor, error)
            except RemoteError as error:
                cause = error.__cause__
                if cause is None or not is_loss(cause):
                    raise
                self._fleet.lost(name, actor, cause)
        return results
