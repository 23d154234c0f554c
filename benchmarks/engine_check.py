"""Real vLLM engines on CPU against transformers, after syncs of changed weights.

    python -m benchmarks.engine_check qwen3_moe mixtral     # names of benchmarks/tiny_models.py

Prints one JSON object a line: the largest difference of log-probabilities in nats between engine and transformers
with the weights of the folder (`start`) and after each of two syncs (`synced`), whether greedy tokens were equal, and
`error` if there was one. Each engine has a process of its own. Its answers are compared outside, because vLLM changes
classes of transformers in its process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from contextlib import nullcontext
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.tiny_models import VOCABULARY, make
from learner.model.loading import load_language_model
from learner.model.policy import Policy, use_attention
from learner.model.rotary import fix_rotary_length
from learner.weight_sync.parameter_source import ParameterSource
from maxpo.config import RolloutConfig
from maxpo.weights.buckets import cut_into_buckets, packed_size
from maxpo.weights.buffers import Buffers
from maxpo.weights.shared_memory import SharedMemory, SharedView
from rollout.vllm_engine.process_env import environment_variables

BUCKET_BYTES = 20_000
PROMPTS, NEW_TOKENS = (5, 17, 30), 12
LONGEST = 64
SYNCS = (1, 2)
"""Seeds of the changes before each sync."""
TIMEOUT_S = 120.0

Answer = tuple[list[int], list[int], list[float]]
"""A prompt, and the tokens of its greedy completion with their log-probabilities."""


def check(names: list[str]) -> Any:
    """Yield the result of each model. Sets environment variables."""
    os.environ.update(environment_variables(RolloutConfig(workers=1, max_new_tokens=1), "cpu"))
    # `collective_rpc` hands over functions of this file.
    os.environ |= {"VLLM_HOST_IP": "127.0.0.1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vllm", __spec__.name if __spec__ else __name__])
    for name in names:
        with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
            yield {"name": name} | check_one(context, name, folder)


def check_one(context: Any, name: str, folder: str) -> dict[str, Any]:
    """Start an engine with a tiny model, compare, and sync twice."""
    make(name).save_pretrained(folder)
    lm: Any = load_language_model(folder, torch.float32, trust_remote_code=False).eval()
    fix_rotary_length(lm, LONGEST)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_engine, args=(theirs, folder))
    process.start()
    theirs.close()
    found: dict[str, Any] = {"synced": [], "greedy": True}
    try:
        for seed in (None, *SYNCS):
            if not ours.poll(TIMEOUT_S):
                raise RuntimeError(f"no answer within {TIMEOUT_S:g} s")
            answers = ours.recv()
            if isinstance(answers, str):
                raise RuntimeError(answers)
            if seed is not None:
                change(lm, seed)
            gap, equal = compare(lm, answers)
            found["greedy"] = found["greedy"] and equal
            if seed is None:
                found["start"] = gap
            else:
                found["synced"].append(gap)
    except (RuntimeError, EOFError) as error:
        found["error"] = str(error) or "the engine's process died"
    finally:
        process.kill()
        process.join()
    return found


def compare(lm: Any, answers: list[Answer]) -> tuple[float, bool]:
    """Return the largest difference of greedy tokens' log-probabilities, and whether the tokens are transformers'."""
    use_attention(lm, "eager")
    largest, equal = 0.0, True
    for prompt, tokens, given in answers:
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        equal = equal and logprobs.argmax(-1).tolist() == tokens
        gaps = (torch.tensor(given) - logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]).abs()
        if not gaps.isfinite().all():
            raise RuntimeError("log-probabilities of the engine are not numbers")
        largest = max(largest, float(gaps.max()))
    return largest, equal


def change(lm: Any, seed: int) -> None:
    """Change every weight and router bias, as training would, but more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [
            *lm.parameters(),
            *(b for n, b in lm.named_buffers() if n.endswith("bias") and b.is_floating_point()),
        ]:
            tensor.mul_(1 + 0.3 * torch.randn(tensor.shape, generator=generator))


def run_engine(pipe: Connection, folder: str) -> None:
    """Answer once with the weights of the folder, and once after each sync. An error is sent as text."""
    # Whatever vLLM writes is not part of the answer.
    sink = os.open(os.environ.get("MAXPO_ENGINE_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    torch.set_num_threads(1)
    try:
        lm = load_language_model(folder, torch.float32, trust_remote_code=False).eval()
        llm = start(folder)
        pipe.send(answer(llm))
        for seed in SYNCS:
            change(lm, seed)
            sync(llm, lm, share=seed == SYNCS[-1])
            pipe.send(answer(llm))
    # Models of vLLM raise whatever their code happens to raise.
    except BaseException as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def start(folder: str) -> Any:
    from vllm import LLM

    return LLM(
        model=folder,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_seqs=4,
        max_num_batched_tokens=256,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        disable_log_stats=True,
        weight_transfer_config={"backend": "gloo"},  # pyright: ignore[reportArgumentType]
    )


def answer(llm: Any) -> list[Answer]:
    """Return greedy completions of the prompts."""
    from vllm import SamplingParams

    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in PROMPTS]
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True, detokenize=False)
    answers: list[Answer] = []
    for prompt in prompts:
        (result,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        tokens, given = list(result.outputs[0].token_ids), result.outputs[0].logprobs
        answers.append((prompt, tokens, [entry[t].logprob for entry, t in zip(given, tokens, strict=True)]))
    return answers


class Local:
    """A process group whose broadcasts give prepared buffers, or only say that shared memory is ready."""

    def __init__(self, buffers: list[Any]) -> None:
        self._buffers = iter(buffers)

    def broadcast(self, buffer: Any, root: int) -> Any:
        if len(buffer) > 1:
            buffer.copy_(next(self._buffers))
        return SimpleNamespace(wait=lambda: None)


def receive(worker: Any, info: Any, buffers: list[Any], path: str | None) -> dict[str, int]:
    """Let the worker's receiver take these buckets, or the shared memory at `path`, and return the checksums."""
    from rollout.vllm_engine.weight_receiver import BUFFERS, GlooUpdate

    receiver = worker.weight_transfer_engine
    receiver.group, receiver.bucket_bytes = Local(buffers), BUCKET_BYTES
    receiver.memory = SharedView(path) if path else Buffers(BUCKET_BYTES, BUFFERS)
    receiver.start_weight_update()
    receiver.receive_weights(GlooUpdate(**info))
    receiver.finish_weight_update()
    return {name: int(digest) for name, digest in receiver.digests.items()}


def sync(llm: Any, lm: Any, *, share: bool) -> None:
    """Send the weights of the model as the learner does."""
    engine: Any = SimpleNamespace(module=Policy(lm), full_parameters=lambda _: nullcontext())
    source = ParameterSource(engine, torch.float32, BUCKET_BYTES, keep=True)
    sizes = [packed_size(bucket) for bucket in cut_into_buckets(source.metas, BUCKET_BYTES)]
    memory = SharedMemory(sum(sizes))
    buffers = [memory.take(size) for size in sizes]
    for bucket, buffer in zip(source.buckets(), buffers, strict=True):
        source.pack(bucket, buffer)
    (taken,) = llm.collective_rpc(receive, args=(source.update_info(), buffers, memory.path if share else None))
    assert taken == {name: int(digest) for name, digest in source.digests.items()}


if __name__ == "__main__":
    for result in check(sys.argv[1:]):
        print(json.dumps(result), flush=True)
