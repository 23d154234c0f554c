"""One rollout worker: a Ray actor around a vLLM engine."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from maxpo.config import EnvironmentConfig, RolloutConfig
from maxpo.errors import RunError
from maxpo.runtime.heap import freeze_heap
from maxpo.runtime.network import use_interface
from maxpo.runtime.output import write_output_to
from maxpo.runtime.waits import print_stacks_on_signal
from maxpo.types import Completion, Group, Prompt, WeightsState
from maxpo.wording import reason
from rollout.endings import stop_ids, text_of
from rollout.episodes.environment_pool import EnvironmentPool
from rollout.episodes.episode import run_episode
from rollout.episodes.observations import ObservationEncoder
from rollout.protocols import Probe, Tokenizer
from rollout.vllm_engine.output import with_last_error

T = TypeVar("T")
PROBE_LENGTHS, PROBE_TOKENS = (3, 8, 21, 55, 512), 24
"""Tokens of the prompts that an engine is compared with the learner on, and of each completion."""


class EngineLostError(RunError):
    """The engine's process is gone. The worker is useless now. Another worker may do its calls."""


class RolloutWorker:
    """Samples groups, and receives weights between groups. All methods are asynchronous and may overlap."""

    def __init__(
        self,
        model_path: str,
        config: RolloutConfig,
        environment: EnvironmentConfig,
        template_args: Mapping[str, object],
        *,
        device: str,
        sync_backend: str,
        max_prompt_tokens: int,
        trust_remote_code: bool,
        interface: str | None,
        keep_cache: bool = False,
        output: Path | None = None,
    ) -> None:
        """Keep the settings, and write all output to the file `output`. `start` loads the model."""
        write_output_to(output)
        print_stacks_on_signal()
        self._model_path, self._config, self._environment = model_path, config, environment
        self._template_args = template_args
        self._device, self._sync_backend = device, sync_backend
        self._max_model_len = max_prompt_tokens + config.max_new_tokens
        self._trust_remote_code, self._interface = trust_remote_code, interface
        self._keep_cache = keep_cache

    async def start(self, version: int | None = None) -> int:
        """Start the engine, and block this actor until the engine is ready. Returns the process id.

        Args:
            version: Version of the weights in the model folder. None: generation is refused until weights arrive.
        """
        import ray
        from transformers import AutoTokenizer

        # vLLM reads this variable at its import.
        os.environ["VLLM_HOST_IP"] = use_interface(ray.util.get_node_ip_address(), self._interface)

        from rollout.vllm_engine.engine import Engine

        self._tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            self._model_path, trust_remote_code=self._trust_remote_code, local_files_only=True
        )
        self._stops = stop_ids(self._tokenizer, self._model_path, trust_remote_code=self._trust_remote_code)
        if self._environment.name is not None:
            self._environments = EnvironmentPool(self._environment, self._config.generate_timeout_s / 2)
            self._encode_observation = ObservationEncoder(
                self._tokenizer, self._environment.observation_role, self._template_args, self._stops
            )
        try:
            self._engine = Engine(
                self._model_path,
                self._config,
                device=self._device,
                sync_backend=self._sync_backend,
                max_model_len=self._max_model_len,
                trust_remote_code=self._trust_remote_code,
                keep_cache=self._keep_cache,
            )
        # vLLM raises errors of many kinds, and often only that its process has ended.
        except Exception as error:
            raise RunError(
                with_last_error(f"vLLM does not start ({type(error).__name__}: {reason(str(error), 600)})")
            ) from error
        if version is not None:
            await self._engine.set_version(version)
        freeze_heap()
        return os.getpid()

    async def process_id(self) -> int:
        """Return the id of this process. The engine's processes are its children."""
        return os.getpid()

    async def generate(
        self, rollout_id: str, prompt: Prompt, n: int, seed: int, limit_s: float, *, greedy: bool = False
    ) -> Group:
        """Sample a group of n completions within `limit_s` seconds. Sample i has the seed `seed + i`, or is greedy.

        Raises:
            TimeoutError: The group took longer.
            EngineLostError: The engine died. Every method that needs the engine may raise this error.
        """
        async with asyncio.timeout(limit_s):
            if self._environment.name is None:
                sampled = self._engine.generate(rollout_id, list(prompt.token_ids), n, seed, greedy=greedy)
            else:
                sampled = self._episodes(rollout_id, prompt, n, seed, greedy)
            completions = await self._while_alive(sampled)
        return Group(prompt=prompt, completions=tuple(map(self._with_text, completions)))

    async def _episodes(self, rollout_id: str, prompt: Prompt, n: int, seed: int, greedy: bool) -> Sequence[Completion]:
        """Sample a group of episodes, see `generate`."""

        async def sample_turn(request_id: str, token_ids: list[int], seed: int, max_tokens: int) -> Completion:
            (turn,) = await self._engine.generate(
                request_id, token_ids, 1, seed, greedy=greedy, max_tokens=max_tokens, stop=self._environment.stop
            )
            return self._with_text(turn)

        episodes = [
            asyncio.ensure_future(
                run_episode(
                    f"{rollout_id}/{i}",
                    prompt,
                    sample_turn,
                    self._environments,
                    self._encode_observation,
                    seed=seed + i,
                    group_seed=seed,
                    max_turns=self._environment.max_turns,
                    max_tokens=self._config.max_new_tokens,
                )
            )
            for i in range(n)
        ]
        try:
            return await asyncio.gather(*episodes)
        finally:
            for episode in episodes:  # if one failed, the others are still running
                episode.cancel()

    def _with_text(self, completion: Completion) -> Completion:
        return replace(completion, text=text_of(self._tokenizer, completion.token_ids.tolist(), self._stops))

    async def probe(self) -> Probe:
        """Sample fixed random prompts twice: all at once, and one after the other."""
        prompts = self._probe_prompts()
        limit = min(PROBE_TOKENS, self._config.max_new_tokens)

        async def sample(index: int, way: str) -> Completion:
            call = self._engine.generate(f"probe/{way}/{index}", prompts[index], 1, seed=index, max_tokens=limit)
            (completion,) = await self._while_alive(call)
            return completion

        async with asyncio.timeout(self._config.generate_timeout_s):
            together = await asyncio.gather(*(sample(i, "together") for i in range(len(prompts))))
            alone = [await sample(i, "alone") for i in range(len(prompts))]
        return Probe(prompts=tuple(map(tuple, prompts)), together=tuple(together), alone=tuple(alone))

    def _probe_prompts(self) -> list[list[int]]:
        """Return random tokens, none of them special, in several lengths up to that of the longest prompt."""
        longest = self._max_model_len - self._config.max_new_tokens
        plain = sorted(set(self._tokenizer.get_vocab().values()) - set(self._tokenizer.all_special_ids))
        draw = random.Random(0)
        return [draw.choices(plain, k=min(length, longest)) for length in PROBE_LENGTHS]

    async def finds_memory(self, path: str, token: bytes) -> bool:
        """Return True if the engine can share memory of the learner, see `maxpo.weights.shared_memory`."""
        from maxpo.weights.shared_memory import is_shared

        return is_shared(path, token)

    async def init_weight_transfer(self, init_info: dict[str, object]) -> None:
        """Connect to the learner."""
        await self._while_alive(self._engine.init_weight_transfer(init_info))

    async def start_weight_update(self) -> None:
        """Pause generation and prepare to receive weights."""
        await self._while_alive(self._engine.start_weight_update())

    async def update_weights(self, update_info: dict[str, object]) -> None:
        """Receive and load weights."""
        await self._while_alive(self._engine.update_weights(update_info))

    async def finish_weight_update(self, version: int) -> WeightsState:
        """Close the update, resume generation, and confirm the weights."""
        digests = await self._while_alive(self._engine.finish_weight_update(version))
        return self._engine.version, digests

    async def receive_weights(self, update_info: dict[str, object], version: int) -> WeightsState:
        """Call `update_weights` and `finish_weight_update`."""
        await self.update_weights(update_info)
        return await self.finish_weight_update(version)

    async def sleep(self, level: int) -> None:
        """Free GPU memory until `wake_up`, see `cluster.sleep_level`. Groups in flight wait."""
        await self._while_alive(self._engine.sleep(level))

    async def wake_up(self) -> None:
        """Allocate the memory of the weights again. Generation goes on after the next sync."""
        await self._while_alive(self._engine.wake_up())

    async def check_engine(self) -> None:
        """Raise EngineLostError if the engine is dead. Does not wait for the engine itself."""
        if self._engine.dead:
            raise EngineLostError(with_last_error("the engine's process died"))

    async def sign_of_life(self) -> None:
        """Return when the engine answers, which is between two forward passes."""
        await self._while_alive(self._engine.sign_of_life())

    async def can_receive(self) -> bool:
        """Return True if the engine answers and can begin to receive weights, False if a sync broke off midway."""
        await self.sign_of_life()
        return self._engine.can_receive

    async def memory_mib(self) -> float:
        """Return the resident memory of this actor and its engine processes."""
        import psutil

        me = psutil.Process()
        return sum(p.memory_info().rss for p in [me, *me.children(recursive=True)]) / 2**20

    async def shutdown(self) -> None:
        """End the processes of the engine and of the environments."""
        if self._environment.name is not None:
            self._environments.shutdown()
        self._engine.shutdown()

    async def _while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """Return the result of a call of the engine, which may hang or fail in any way if the engine's process dies."""
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({task}, timeout=1.0))[0]:
                await self.check_engine()
        finally:
            task.cancel()
        if task.exception() is not None:
            await self.check_engine()
        return task.result()
