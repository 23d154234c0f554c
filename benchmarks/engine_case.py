"""One real vLLM engine on CPU and one tiny model: what the engine says before and after a weight sync."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import traceback
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.tiny_models import VOCABULARY, make
from rollout.vllm_engine.process_env import CPU_ENVIRONMENT

PROMPTS, TOKENS = (9, 14, 30), 12
LONGEST = 64
BUCKET = 1 << 20

Said = tuple[list[int], list[int], list[float]]
"""A prompt, and the tokens of a completion with their log-probabilities."""


def start_server() -> Any:
    """Return a context whose processes have vLLM imported already. Sets environment variables."""
    os.environ.update(CPU_ENVIRONMENT)
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_PLUGINS="maxpo_weight_receivers",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vllm", "benchmarks.engine_case", "learner.weight_sync.parameter_source"])
    return context


def compare(context: Any, name: str, timeout_s: float) -> dict[str, Any]:
    """Return the differences of a loaded and of a synced engine from transformers, or an error.

    The engine loads the weights of another seed, and gets those of seed 0 by a sync.
    """
    result: dict[str, Any] = {"stage": "load"}
    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(theirs, name, folder))
        process.start()
        theirs.close()
        try:
            for stage, following, seed in (("loaded", "sync", 1), ("synced", "", 0)):
                if not ours.poll(timeout_s):
                    result["error"] = f"no answer within {timeout_s:g} s"
                    break
                said = ours.recv()
                if isinstance(said, str):
                    result["error"] = said
                    break
                result |= {stage: _gap(make(name, seed=seed), said), "stage": following}
        except EOFError:
            result["error"] = "the engine's process died"
        process.kill()
        process.join()
    return result


def _gap(lm: Any, said: list[Said]) -> dict[str, Any]:
    """Return the largest difference of log-probabilities of greedy tokens, and if all tokens are those of `lm`.

    vLLM changes classes of transformers in its process, so this is not done there.
    """
    largest, equal = 0.0, True
    lm.set_attn_implementation("eager")
    for prompt, tokens, logprobs in said:
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = logits.float().log_softmax(-1)
        equal = equal and expected.argmax(-1).tolist() == tokens
        differences = torch.tensor(logprobs) - expected.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        largest = max(largest, float(differences.abs().nan_to_num(99.0).max()))
    return {"nats": largest, "greedy": equal}


def _child(pipe: Connection, name: str, folder: str) -> None:
    # Whatever vLLM writes is not part of the answer.
    sink = os.open(os.environ.get("MAXPO_ENGINE_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        _run(pipe, name, Path(folder))
    # Models of vLLM raise whatever their code happens to raise.
    except BaseException as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _run(pipe: Connection, name: str, folder: Path) -> None:
    from vllm import LLM

    torch.set_num_threads(1)
    make(name, folder, seed=1)
    trained = make(name)
    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=LONGEST,
        max_num_seqs=8,
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=1024,
        logprobs_mode="processed_logprobs",
        weight_transfer_config={"backend": "gloo"},  # pyright: ignore
        worker_extension_cls="rollout.vllm_engine.weight_receiver.WorkerExtension",
        disable_log_stats=True,
    )
    pipe.send(_say(llm))
    _sync(llm, trained)
    pipe.send(_say(llm))


def _say(llm: Any) -> list[Said]:
    """Return greedy completions of the prompts."""
    from vllm import SamplingParams

    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in PROMPTS]
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=0, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    said: list[Said] = []
    for prompt, output in zip(prompts, outputs, strict=True):
        completion = output.outputs[0]
        tokens = list(completion.token_ids)
        said.append(
            (prompt, tokens, [entry[token].logprob for entry, token in zip(completion.logprobs, tokens, strict=True)])
        )
    return said


def _sync(llm: Any, lm: Any) -> None:
    """Send the weights of `lm` as the learner does."""
    from learner.model.policy import Policy
    from learner.weight_sync.parameter_source import ParameterSource
    from maxpo.weights.rendezvous import gloo_group, serve_store

    engine: Any = SimpleNamespace(module=Policy(lm), full_parameters=lambda _: nullcontext())
    source = ParameterSource(engine, torch.float32, BUCKET, keep=True)
    store, port = serve_store("127.0.0.1", 30.0)

    def send() -> None:
        group = gloo_group(store, 0, 2, 30.0)
        for bucket in source.buckets():
            buffer = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, tensor in bucket])
            group.broadcast(buffer, 0).wait()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    init = {"host": "127.0.0.1", "port": port, "rank_offset": 1, "world_size": 2}
    llm.init_weight_transfer_engine({"init_info": init | {"bucket_bytes": BUCKET, "timeout_s": 30.0}})
    llm.start_weight_update()
    llm.update_weights({"update_info": source.update_info()})
    llm.finish_weight_update("1")
    sender.join()
