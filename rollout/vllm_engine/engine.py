"""One vLLM engine: start, sample groups, receive weights. The only file that calls vLLM's engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.inputs import TokensPrompt
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from maxpo.config import RolloutConfig
from maxpo.types import Completion
from rollout.vllm_engine.arguments import default_arguments, fixed_arguments


class Engine:
    """An asynchronous vLLM engine that knows the version of its weights."""

    def __init__(
        self,
        model_path: str,
        config: RolloutConfig,
        *,
        device: str,
        sync_backend: str,
        max_model_len: int,
        trust_remote_code: bool = False,
        keep_cache: bool = False,
    ) -> None:
        """Load the model. Blocks until the engine is ready (about 20 s on CPU). `keep_cache`: see `pipeline.cache`."""
        fixed = fixed_arguments(
            model_path,
            config,
            device=device,
            sync_backend=sync_backend,
            max_model_len=max_model_len,
            trust_remote_code=trust_remote_code,
        )
        args = default_arguments(config, device=device, max_model_len=max_model_len) | config.engine_args | fixed
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
        self._config, self._keep_cache = config, keep_cache
        self.version: int | None = None
        self._asleep = False
        self._sync: Literal["ready", "receiving"] | None = None

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        n: int,
        seed: int | None,
        *,
        greedy: bool = False,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Sample n completions of one prompt. Sample i uses the seed `seed + i`.

        Args:
            request_id: Name of the request.
            token_ids: Tokens of the prompt.
            n: Number of completions.
            seed: Seed of sample 0. None: not seeded.
            greedy: True to take the likeliest token each time.
            max_tokens: Token limit. None: `rollout.max_new_tokens`.
            stop: Texts that end a completion, besides the end of sequence. Their tokens are kept.

        Raises:
            RuntimeError: The engine's weights have no version yet.
        """
        if self.version is None:
            raise RuntimeError("generation refused: the engine has no weight version yet")
        config = self._config
        params = SamplingParams(
            n=n,
            seed=seed,
            max_tokens=config.max_new_tokens if max_tokens is None else max_tokens,
            stop=list(stop) or None,
            temperature=0.0 if greedy else config.temperature,
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(stop),
            skip_special_tokens=False,  # a stop text may be or contain one
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = TokensPrompt(prompt_token_ids=token_ids)
        if self._keep_cache:  # so that no request finds what other weights have cached
            prompt["cache_salt"] = str(self.version)
        # FINAL_ONLY yields once, when all n completions have ended.
        (result,) = [r async for r in self._llm.generate(prompt, params, request_id)]
        return [_completion(output) for output in sorted(result.outputs, key=lambda output: output.index)]

    async def set_version(self, version: int) -> None:
        """Set the version of the weights that the engine was started with."""
        await self._llm.update_weight_version(str(version))
        self.version = version

    async def init_weight_transfer(self, init_info: dict[str, object]) -> None:
        """Connect to the learner with the settings that the receiver of the backend expects."""
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        """Pause generation and prepare the model to receive weights. Running requests continue afterwards.

        A second call before `update_weights` does nothing.
        """
        if self._sync == "ready":
            return
        # As `AsyncLLM.pause_generation`, without its sleep of 20 ms, which only gives time to outputs that are ready.
        await self._llm.renderer.clear_mm_cache_async()
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=not self._keep_cache)
        await self._llm.start_weight_update()
        self._sync = "ready"

    async def update_weights(self, update_info: dict[str, object]) -> None:
        """Receive the weights. Returns when all of them are loaded."""
        self._sync = "receiving"
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, version: int) -> list[dict[str, int]]:
        """Close the update, label new tokens with `version`, and resume generation.

        Returns the checksums of the received tensors, one dict for each of the engine's workers.
        """
        await self._llm.finish_weight_update(str(version))
        digests: list[dict[str, int]] = await self._llm.collective_rpc("received_digests")
        self.version = version
        if self._asleep:
            await self._llm.wake_up(["kv_cache"])
            self._asleep = False
        await self._llm.resume_generation()
        self._sync = None
        return digests

    @property
    def can_receive(self) -> bool:
        """False after an update that broke off while weights were received, which vLLM cannot begin again."""
        return self._sync != "receiving"

    async def sleep(self, level: int) -> None:
        """Free the memory of KV cache and weights. Level 1 moves the weights to the host, level 2 drops them.

        Running requests wait, and go on with the weights that arrive next.
        """
        await self._llm.sleep(level, mode="keep")
        self._asleep = True

    async def wake_up(self) -> None:
        """Allocate the memory of the weights again. The cache follows with `finish_weight_update`.

        vLLM goes on with running requests once all memory is there. After a sleep of level 2 the weights are garbage
        until they have been sent, so the cache must come last.
        """
        await self._llm.wake_up(["weights"])

    @property
    def dead(self) -> bool:
        """True if the engine's process is gone, so that no call can succeed."""
        return self._llm.errored

    async def sign_of_life(self) -> None:
        """Return when the engine's process has answered."""
        await self._llm.is_sleeping()

    def shutdown(self) -> None:
        """End the engine's processes."""
        self._llm.shutdown()


def _completion(output: CompletionOutput) -> Completion:
    assert isinstance(output.logprobs, FlatLogprobs)
    ids = np.array(output.token_ids, np.int32)
    spans = [(int(span.version), span.start) for span in output.weight_versions or [] if span.end > span.start]
    if len(ids) and not spans:
        raise RuntimeError("vLLM returned tokens without the version of the weights that made them")
    return Completion(
        text="",
        token_ids=ids,
        logprobs=np.array(output.logprobs.logprobs, np.float32),
        finish_reason=output.finish_reason or "abort",
        versions=tuple(spans),
    )
