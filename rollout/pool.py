"""All rollout workers together: the `Rollouts` that the loop drives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef

from maxpo.batches.samples import Sample
from maxpo.config import Config
from maxpo.data.templates import template_args
from maxpo.errors import LateError, LearnerLostError, RemoteError, RunError
from maxpo.runtime.output import output_file
from maxpo.runtime.ray_calls import wait_for
from maxpo.seeds import derive_seed
from maxpo.types import Group, Prompt, Receiver, ScoredGroup, Ticket, WeightManifest
from rollout.comparison import compare
from rollout.fleet import Fleet, is_loss
from rollout.protocols import Probe, WorkerHandle
from rollout.sampling import Request, Sampling
from rollout.scoring.scorer import Scorer
from rollout.scoring.verifier_pool import RewardPool
from rollout.worker import RolloutWorker

CONTROL_CALLS = 64
"""Calls of a worker at once besides those that sample, such as health checks and weight syncs. A call that waited in
Ray's queue behind groups could be one that these groups wait for."""


class RolloutPool:
    """Spreads prompts over workers, returns whole groups in the order of the prompts, and scores them.

    A worker that dies, or whose engine dies, is replaced. Other workers sample its groups, and the replacement
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
        """Create `rollout.workers` actors. `begin_start` and `finish_start` make them ready.

        Args:
            config: A checked configuration.
            device: cpu or cuda.
            sync_backend: shm, gloo, nccl or ipc.
            options: Ray options of the actor with this number. Called again for each replacement.
            log_folder: Folder for the actors' output. None: it stays in Ray's logs.
        """
        self._config = config.rollout
        self._backend = sync_backend
        self._seed = config.run.seed
        create = _actor_factory(config, device, sync_backend, options, log_folder)
        self._fleet = Fleet(create, config, log_folder)
        self._sampling = Sampling(
            self._fleet,
            capacity=config.rollout.max_concurrent_sequences,
            overcommit=config.rollout.overcommit,
            limit_s=config.rollout.generate_timeout_s,
            await_serving=self._await_serving,
        )
        self._rewards = RewardPool(config.reward, config.rollout.max_new_tokens)
        self._scorer = Scorer(self._rewards, lambda error: self._sampling.post(partial(_raise, error)))
        self._group_size = config.algorithm.group_size
        self._unfinished: dict[int, Ticket] = {}
        """Tickets that were submitted and are not scored yet, by number."""
        self._finished = 0
        self._syncing = False
        self._sleep_level = config.cluster.sleep_level if sync_backend == "ipc" else 0
        self._asleep = False
        self._dtypes = (config.rollout.dtype, config.learner.dtype)
        self._compared: dict[str, WorkerHandle] = {}
        self.logprobs: Callable[[Sequence[Sample]], list[list[float]]] | None = None
        """The learner's log-probabilities of sampled tokens. Without this function engines are not compared with the
        learner."""
        self.republish: Callable[[Sequence[Receiver]], WeightManifest] | None = None
        """Sends the current weights again, under their version, to the given engines. Needed when all workers were
        lost between two syncs. Without this function such a loss ends the run."""

    def begin_start(self, version: int | None = None) -> None:
        """Start all engines without waiting. `version`: see `RolloutWorker.start`."""
        self._fleet.begin_start(version)

    def finish_start(self) -> None:
        """Wait until all engines are ready."""
        self._fleet.finish_start()

    def receivers(self) -> list[Receiver]:
        """Return the engines for `Learner.publish`: all that are alive now, restarted ones included.

        Waits for an engine if none is alive.
        """
        self._fleet.poll()
        if self._asleep:
            self._ask("wake_up", "waking up")
            self._asleep = False
        if self._backend in ("nccl", "ipc"):
            # Elsewhere `start_weight_update` tells in time. Here a publish that fails ends the learner.
            self._ask("check_engine", "saying whether its engine is alive")
        self._fleet.wait_for_one()
        workers = self._config.tensor_parallel_size
        # Sorted by name, so that the same engines always give the same list.
        engines = sorted(self._fleet.started.items())
        self._syncing = True
        return [Receiver(name=name, actor=actor, workers=workers) for name, actor in engines]

    def replace_lost(self) -> bool:
        """After a failed publish, replace lost workers and return True if a loss explains the failure.

        The publish can then be repeated. Remaining workers that stopped while they received weights, which vLLM cannot
        begin again, are restarted too.

        Raises:
            LearnerLostError: The backend is nccl or ipc, where the learner's half may hang in the transfer forever.
        """
        time.sleep(1.0)  # The first worker to complain may be a neighbour of the one that died.
        before = self._fleet.started
        can_receive: dict[str, bool] = self._ask("can_receive", "giving a sign of life")
        left = self._fleet.started
        if len(left) == len(before):
            return False
        if self._backend in ("nccl", "ipc"):
            gone = ", ".join(sorted(set(before) - set(left)))
            raise LearnerLostError(
                f"{gone} was lost in a transfer over {self._backend}, which the learner cannot give up"
            )
        for name in left:
            if not can_receive[name]:
                self._fleet.replace(name)
        return True

    def learner_restarts(self) -> None:
        """Before the learner is started again, replace engines that it left in the middle of a sync.

        Engines that share the learner's GPUs are all replaced, and before the learner starts: vLLM measures the
        free memory at its start.
        """
        if self._sleep_level:
            self._fleet.replace_all()
            self._fleet.wait_for_all()
        elif self._syncing:
            for name in list(self._fleet.started):
                self._fleet.replace(name)
        self._syncing = self._asleep = False
        self._compared = {}

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        draw: str,
        on_group: Callable[[Group], None] = lambda group: None,
        *,
        greedy: bool = False,
    ) -> list[Group]:
        """Return one group of `group_size` completions for each prompt.

        A sample depends neither on the worker nor on the order. Groups that were submitted wait until these are done.

        Args:
            prompts: Prompts to complete.
            group_size: Completions of each prompt.
            draw: Name of this sampling in the run, for example the step. Equal names sample equally.
            on_group: Called with each group as it arrives.
            greedy: True to take the likeliest token each time instead of sampling.

        Raises:
            RemoteError: A request failed, or took longer than `rollout.generate_timeout_s` for a group.
            RunError: Too many workers were lost, see `rollout.max_restarts`.
        """

        groups: dict[int, Group] = {}

        def take(index: int, group: Group) -> None:
            groups[index] = group
            on_group(group)

        for index, prompt in enumerate(prompts):
            name = f"{draw}/{index}/{prompt.prompt_id}"
            self._request(name, prompt, group_size, draw, index, partial(take, index), greedy=greedy, urgent=True)
        try:
            self.serve(lambda: len(groups) == len(prompts))
        except BaseException:
            self.abandon()
            raise
        return [groups[index] for index in range(len(prompts))]

    def submit(self, ticket: Ticket) -> None:
        """Sample and score a prompt when there is room, in the order of the numbers. The ticket gets the result."""

        def sampled(group: Group) -> None:
            ticket.group, ticket.sampled_at = group, time.monotonic()
            self._scorer.submit(group, lambda scored: self._sampling.post(partial(self._take_score, ticket, scored)))

        self._unfinished[ticket.number] = ticket
        name = f"{ticket.draw}/{ticket.number}/{ticket.prompt.prompt_id}"
        self._request(name, ticket.prompt, self._group_size, ticket.draw, ticket.number, sampled)

    def _request(
        self,
        name: str,
        prompt: Prompt,
        size: int,
        draw: str,
        number: int,
        done: Callable[[Group], None],
        *,
        greedy: bool = False,
        urgent: bool = False,
    ) -> None:
        """Ask for a group. Sample i of it is drawn with the seed hash(run seed, draw, prompt id) + i."""

        def start(actor: WorkerHandle, limit_s: float) -> ObjectRef[Group]:
            seed = derive_seed(self._seed, draw, prompt.prompt_id)
            return actor.generate.remote(name, prompt, size, seed, limit_s, greedy=greedy)

        self._sampling.submit(Request(urgent, number, size, start, done))

    def _take_score(self, ticket: Ticket, scored: ScoredGroup) -> None:
        if self._unfinished.get(ticket.number) is ticket:  # not abandoned
            del self._unfinished[ticket.number]
            ticket.scored, ticket.finished = scored, self._finished
            self._finished += 1

    def serve(self, until: Callable[[], bool], *, learner_busy: bool = False) -> None:
        """Let sampling and scoring go on until the condition holds. It is asked first, and after each event.

        Args:
            until: The condition.
            learner_busy: The learner cannot send weights meanwhile, so engines that have none wait.

        Raises:
            RemoteError: A request failed, or took longer than `rollout.generate_timeout_s` for a group.
            RunError: Too many workers were lost, see `rollout.max_restarts`, or the verifier processes broke down.
        """
        self._sampling.serve(until, may_send_weights=not learner_busy)

    def idle(self) -> bool:
        """Return True if nothing goes on: all that was submitted is finished, or waits for engines with weights."""
        return self._sampling.idle and len(self._unfinished) == self._sampling.waiting

    def wake(self) -> None:
        """Make `serve` ask its condition again. Any thread may call this."""
        self._sampling.post(lambda: None)

    def abandon(self) -> None:
        """Forget everything that was submitted. Engines stop working on it."""
        self._sampling.abandon()
        self._unfinished = {}

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Return the rewards of every completion of every group."""
        return self._rewards.score(groups)

    def judge(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """Return the groups with the rewards that training uses, see `RewardPool.judge`."""
        return self._rewards.judge(groups)

    def answers(self, groups: Sequence[ScoredGroup]) -> list[tuple[str | None, ...] | None]:
        """Return the answer of every completion, see `RewardPool.answers`."""
        return self._rewards.answers(groups)

    def rest(self) -> None:
        """Put engines that share the learner's GPUs to sleep, so that the learner has their memory."""
        if self._sleep_level:
            self._fleet.wait_for_all()  # an engine that starts while the learner trains would lack memory
            self._ask("sleep", "going to sleep", self._sleep_level)
            self._asleep = True

    def confirm(self, manifest: WeightManifest) -> str | None:
        """Compare the weights of every engine with those that the learner sent. From then on restarted engines serve.

        The checksums cover what was sent, not what the engine makes of it. So an engine that is new, or new to this
        learner, also samples fixed prompts, and the learner computes the log-probabilities of its tokens.

        Returns:
            A sentence on engines that were compared in this way.

        Raises:
            RemoteError: An engine has another version, or a tensor arrived differently or not at all.
            RunError: An engine computes other log-probabilities than the learner, beyond rounding.
        """
        expected = dict(zip(manifest.names, manifest.digests, strict=True))
        for name in self._fleet.started:
            version, ranks = manifest.received.get(name, (None, []))
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
        sentence = self._compare_new()
        self._fleet.admit()
        self._syncing = False
        return sentence

    def _compare_new(self) -> str | None:
        """Compare the engines that have not been compared since they or the learner started, see `confirm`."""
        new = {name: a for name, a in self._fleet.started.items() if self._compared.get(name) is not a}
        if self.logprobs is None or not new:
            return None
        probes: dict[str, Probe] = self._ask(
            "probe", "sampling fixed prompts", only=new, limit_s=self._config.generate_timeout_s + 30
        )
        temperature = self._config.temperature
        found = [compare(name, probe, self.logprobs, self._dtypes, temperature) for name, probe in probes.items()]
        self._compared |= {name: new[name] for name in probes}
        if not found:
            return None
        largest, tokens = max(each.largest for each in found), sum(each.tokens for each in found)
        return f"{' and '.join(probes)}: engine and learner agree to {largest:.1e} nats on {tokens} sampled tokens"

    def metrics(self) -> dict[str, float]:
        """Return the memory of the workers and the numbers of their losses."""
        sizes: dict[str, float] = self._ask("memory_mib", "reporting its memory")
        idle, filled = self._sampling.usage()
        return {
            "pipeline/engines_idle": idle,
            "pipeline/engines_filled": filled,
            "memory/rollout_rss_mib": max(sizes.values(), default=0.0),
            "rollout/restarts": float(self._fleet.restarts),
            "rollout/workers_alive": float(len(self._fleet.serving)),
            "rollout/groups_resampled": float(self._sampling.resampled),
        }

    def shutdown(self) -> None:
        """End engines, actors and verifier processes."""
        self._scorer.stop()
        self._rewards.shutdown()
        self._fleet.shutdown()

    def _await_serving(self) -> None:
        """If no worker serves, wait for a replacement and send it the current weights."""
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

    def _ask(
        self,
        method: str,
        doing: str,
        *args: object,
        only: Mapping[str, WorkerHandle] | None = None,
        limit_s: float | None = None,
    ) -> dict[str, Any]:
        """Call a method of all workers whose engines run, or of those in `only`, and return the results by name.

        Workers that are lost, or do not answer in time, are replaced and left out. The time is `limit_s`, or
        `rollout.health_timeout_s`.
        """
        results: dict[str, Any] = {}
        end = time.monotonic() + (limit_s or self._config.health_timeout_s)
        workers = self._fleet.started if only is None else only
        calls = [(name, actor, getattr(actor, method).remote(*args)) for name, actor in workers.items()]
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


def _raise(error: BaseException) -> None:
    raise error


def _actor_factory(
    config: Config,
    device: str,
    sync_backend: str,
    options: Callable[[int], dict[str, Any]],
    log_folder: Path | None,
) -> Callable[[int], WorkerHandle]:
    """Return a function that creates the actor of the worker with a given number."""
    remote: Any = ray.remote(RolloutWorker)
    # Groups of one completion are as many as a worker may hold sequences, and one more to follow.
    calls = math.ceil(config.rollout.overcommit * config.rollout.max_concurrent_sequences) + 1 + CONTROL_CALLS

    def create(number: int) -> WorkerHandle:
        return remote.options(max_concurrency=calls, **options(number)).remote(
            config.model.path,
            config.rollout,
            config.environment,
            template_args(config.data),
            device=device,
            sync_backend=sync_backend,
            max_prompt_tokens=config.data.max_prompt_tokens,
            trust_remote_code=config.model.trust_remote_code,
            interface=config.cluster.interface,
            keep_cache=config.pipeline.cache == "keep",
            output=output_file(log_folder, f"rollout worker {number}"),
        )

    return create
