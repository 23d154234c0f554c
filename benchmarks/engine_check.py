"""Real vLLM engines on CPU against transformers, after syncs of changed weights.

    python -m benchmarks.engine_check qwen3_moe mixtral     # names of benchmarks/tiny_models.py

Prints one JSON object a line: the largest difference of log-probabilities in nats between engine and transformers
with the weights of the folder (`start`) and after each of two syncs (`synced`), whether greedy tokens were equal, or
`error`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from maxpo.config import RolloutConfig
from rollout.vllm_engine.process_env import environment_variables

BUCKET_BYTES = 20_000
PROMPTS, NEW_TOKENS = (5, 17, 30), 12


class Local:
    """A process group whose broadcasts give prepared buffers."""

    def __init__(self, buffers: list[Any]) -> None:
        self._buffers = iter(buffers)

    def broadcast(self, buffer: Any, root: int) -> Any:
        buffer.copy_(next(self._buffers))
        return SimpleNamespace(wait=lambda: None)


def receive(worker: Any, info: Any, buffers: list[Any]) -> dict[str, int]:
    """Let the worker's receiver take these buckets, and return the checksums of what it took."""
    from rollout.vllm_engine.weight_receiver import GlooUpdate

    receiver = worker.weight_transfer_engine
    receiver.group, receiver.bucket_bytes = Local(buffers), BUCKET_BYTES
    receiver.start_weight_update()
    receiver.receive_weights(GlooUpdate(**info))
    receiver.finish_weight_update()
    return {name: int(digest) for name, digest in receiver.digests.items()}


def sync(llm: Any, lm: Any) -> None:
    """Send the weights of the model as the learner does."""
    import torch

    from learner.model.policy import Policy
    from learner.weight_sync.parameter_source import ParameterSource

    engine: Any = SimpleNamespace(module=Policy(lm), full_parameters=lambda _: nullcontext())
    source = ParameterSource(engine, torch.float32, BUCKET_BYTES, keep=True)
    buffers = [torch.cat([t.reshape(-1).view(torch.uint8) for _, t in bucket]) for bucket in source.buckets()]
    (taken,) = llm.collective_rpc(receive, args=(source.update_info(), buffers))
    assert taken == {name: int(digest) for name, digest in source.digests.items()}


def change(lm: Any, seed: int) -> None:
    """Change every weight and router bias, as training would, but more."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*lm.parameters(), *(b for n, b in lm.named_buffers() if n.endswith("bias"))]:
            tensor.mul_(1 + 0.3 * torch.randn(tensor.shape, generator=generator))


def compare(llm: Any, lm: Any) -> tuple[float, bool]:
    """Return the largest difference of greedy tokens' log-probabilities, and whether the tokens are transformers'."""
    import torch
    from vllm import SamplingParams

    from learner.model.policy import use_attention

    use_attention(lm, "eager")
    generator = torch.Generator().manual_seed(3)
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True, detokenize=False)
    gap, equal = 0.0, True
    for length in PROMPTS:
        prompt = torch.randint(3, 120, (length,), generator=generator).tolist()
        (result,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        tokens, given = list(result.outputs[0].token_ids), result.outputs[0].logprobs
        with torch.no_grad():
            logprobs = lm(torch.tensor([prompt + tokens]), use_cache=False).logits[0, length - 1 : -1].log_softmax(-1)
        equal = equal and logprobs.argmax(-1).tolist() == tokens
        for i, token in enumerate(tokens):
            gap = max(gap, abs(given[i][token].logprob - float(logprobs[i, token])))
    return gap, equal


def check(name: str) -> dict[str, object]:
    """Start an engine with a tiny model, compare, and sync twice."""
    import torch
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    from benchmarks.tiny_models import make
    from learner.model.loading import load_language_model

    llm: Any = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            make(name).save_pretrained(folder)
            lm = load_language_model(folder, torch.float32, trust_remote_code=False).eval()
            llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                dtype="float32",
                enforce_eager=True,
                max_model_len=64,
                max_num_seqs=4,
                max_num_batched_tokens=256,
                enable_chunked_prefill=False,
                enable_prefix_caching=False,
                disable_log_stats=True,
                weight_transfer_config={"backend": "gloo"},
            )
            start, equal = compare(llm, lm)
            gaps: list[float] = []
            for seed in (1, 2):
                change(lm, seed)
                sync(llm, lm)
                gap, same = compare(llm, lm)
                gaps.append(gap)
                equal = equal and same
        return {"name": name, "start": start, "synced": gaps, "greedy": equal}
    # Whatever an engine raises for a model that it does not run is the result.
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {error}"}
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def main(names: list[str]) -> None:
    """Check the models one after the other in this process."""
    config = RolloutConfig(workers=1, max_new_tokens=1)
    os.environ.update(environment_variables(config, "cpu"))
    # `collective_rpc` hands over functions of this file.
    os.environ |= {"VLLM_HOST_IP": "127.0.0.1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    for name in names:
        print(json.dumps(check(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
