"""All rollout workers together: the `Rollouts` that the loop drives."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from maxpo.config import Config
from maxpo.deadline import RemoteError, failure, wait_for
from maxpo.seeds import derive_seed
from maxpo.types import Group, Prompt, Receiver, ScoredGroup, WeightManifest
from rollout.reward_pool import RewardPool
from rollout.worker import RolloutWorker


class RolloutPool:
    """Spreads prompts over workers, returns whole groups in the order of the prompts, and scores them."""

    def __init__(self, config: Config, device: str, sync_backend: str, actor_options: Sequence[dict[str, Any]]) -> None:
        """Create one actor for each entry of `actor_options`; `start` makes them ready."""
        self._config = config.rollout
        self._seed = config.run.seed
        remote: Any = ray.remote(RolloutWorker)
        self._actors: dict[str, Any] = {
            f"rollout worker {i}": remote.options(max_concurrency=1000, **options).remote(
                config.model.path,
                config.rollout,
                device=device,
                sync_backend=sync_backend,
                max_prompt_tokens=config.data.max_prompt_tokens,
                trust_remote_code=config.model.trust_remote_code,
            )
            for i, options in enumerate(actor_options)
        }
        self._rewards = RewardPool(config.reward)

    def begin_start(self, version: int | None = None) -> None:
        """Start all engines without waiting. `version`: see `RolloutWorker.start`."""
        self._starting = {name: actor.start.remote(version) for name, actor in self._actors.items()}

    def finish_start(self) -> None:
        """Wait until all engines are ready."""
        wait_for(self._starting, timeout_s=self._config.start_timeout_s, doing="starting its engine", ray=ray)

    def receivers(self) -> list[Receiver]:
        """The engines, for `Learner.publish`."""
        workers = self._config.tensor_parallel_size
        return [Receiver(name=name, actor=actor, workers=workers) for name, actor in self._actors.items()]

    def generate(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        draw: str,
        on_group: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """One group of `group_size` completions for each prompt.

        Sample i of a prompt is drawn with the seed hash(run seed, draw, prompt id) + i, so it depends neither on
        the worker nor on the order. Each worker holds as many groups as fill its engine, and one more to follow.

        Args:
            prompts: what to complete.
            group_size: completions of each.
            draw: names this sampling among all of the run, for example the step; equal draws sample equally.
            on_group: called with each group as it arrives.

        Raises:
            RemoteError: a worker died, failed, or took longer than `rollout.generate_timeout_s` for a group.
        """
        per_worker = math.ceil(self._config.max_concurrent_sequences / group_size) + 1
        waiting = deque(enumerate(prompts))
        running: dict[Any, tuple[int, str, float]] = {}
        groups: dict[int, Group] = {}
        # Above the worker's own limit, so that the worker's error, which knows more, comes first.
        limit = self._config.generate_timeout_s + 30

        def dispatch(name: str) -> None:
            if waiting:
                index, prompt = waiting.popleft()
                seed = derive_seed(self._seed, draw, prompt.prompt_id)
                ref = self._actors[name].generate.remote(f"{draw}/{index}/{prompt.prompt_id}", prompt, group_size, seed)
                running[ref] = index, name, time.monotonic() + limit

        for _ in range(per_worker):
            for name in self._actors:
                dispatch(name)
        while running:
            deadline = min(end for _, _, end in running.values())
            ready, _ = ray.wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                late = sorted({name for _, name, end in running.values() if end <= time.monotonic()})
                raise RemoteError(f"{', '.join(late)} did not return a group within {limit:g} s")
            index, name, _ = running.pop(ready[0])
            try:
                groups[index] = ray.get(ready[0])
            except Exception as error:
                raise failure(name, "generating", error) from error
            on_group(groups[index])
            dispatch(name)
        return [groups[i] for i in range(len(prompts))]

    def score(self, groups: Sequence[Group]) -> list[ScoredGroup]:
        """Rewards for every completion of every group."""
        return self._rewards.score(groups)

    def confirm(self, manifest: WeightManifest) -> None:
        """Compare what every engine received with what the learner sent.

        Raises:
            RemoteError: an engine has another version, or a tensor arrived differently or not at all.
        """
        refs = {name: actor.weights_state.remote() for name, actor in self._actors.items()}
        states = wait_for(refs, timeout_s=60.0, doing="reporting its weights", ray=ray)
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

    def metrics(self) -> dict[str, float]:
        """Memory of the workers."""
        refs = {name: actor.memory_mib.remote() for name, actor in self._actors.items()}
        sizes = wait_for(refs, timeout_s=60.0, doing="reporting its memory", ray=ray)
        return {"memory/rollout_rss_mib": max(sizes.values())}

    def shutdown(self) -> None:
        """End engines, actors and verifier processes."""
        self._rewards.shutdown()
        refs = {name: actor.shutdown.remote() for name, actor in self._actors.items()}
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=10.0)
        for actor in self._actors.values():
            ray.kill(actor)
