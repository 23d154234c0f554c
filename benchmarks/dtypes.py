"""Gap between sampler and learner in each number format.

    python benchmarks/dtypes.py --model models/Qwen3-0.6B --prompts prompts.txt

For each format a new process samples completions with a vLLM engine and computes the log-probabilities of the same
tokens with the learner's model, both in that format. The table has the metrics `mismatch/kl` (k3) and
`mismatch/logprob_abs` of a run before its first step. The prompts are the lines of a text file. By default the model is
that of the demo, with prompts of its task.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.weight_sync import DEMO, machine
from maxpo.config import RolloutConfig

FORMATS = ("float32", "bfloat16", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO), help="Hugging Face folder")
    parser.add_argument("--prompts", type=Path, help="text file with one prompt a line, used as they are")
    parser.add_argument("--completions", type=int, default=4, help="of each prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--one", choices=FORMATS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args)))
        return
    print(f"{machine()}\n{args.model}\n")
    print("| format of sampler and learner | tokens | mismatch/kl | mismatch/logprob_abs |\n" + "| --- " * 4 + "|")
    for name in FORMATS:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        got = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {got['tokens']} | {got['kl']:.1e} | {got['abs']:.1e} |", flush=True)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Sample with an engine, compute with the learner's model, and return the gap over all sampled tokens."""
    from rollout.vllm_engine.process_env import environment_variables

    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.update(environment_variables(RolloutConfig(max_new_tokens=args.max_new_tokens), device))
    from vllm import LLM, SamplingParams

    lines = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else countdown()
    engine: Any = LLM(
        args.model, dtype=args.one, enforce_eager=True, logprobs_mode="processed_logprobs", gpu_memory_utilization=0.4
    )
    sampling = SamplingParams(n=args.completions, temperature=1.0, logprobs=0, max_tokens=args.max_new_tokens, seed=0)
    samples = [
        (list(result.prompt_token_ids), list(output.token_ids), [p[t].logprob for p, t in _steps(output)])
        for result in engine.generate(lines, sampling, use_tqdm=False)
        for output in result.outputs
    ]
    gaps = torch.cat([own - sampled for own, sampled in learned(args, samples, device)])
    return {
        "tokens": len(gaps),
        "kl": float((torch.expm1(gaps) - gaps).mean()),
        "abs": float(gaps.abs().mean()),
    }


def learned(args: argparse.Namespace, samples: list[Any], device: str) -> Any:
    """Yield the log-probabilities of learner and sampler for each completion."""
    from learner.model.loading import load_language_model
    from maxpo.losses.logprobs import token_logprobs

    model: Any = load_language_model(args.model, getattr(torch, args.one), trust_remote_code=False).to(device)
    for prompt, completion, sampled in samples:
        ids = torch.tensor(prompt + completion, device=device)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
            mask = torch.arange(len(ids), device=device) >= len(prompt)
            own, _ = token_logprobs(logits, lambda rows: rows, ids, mask, temperature=1.0, chunk=256)
        yield own[mask].double().cpu(), torch.tensor(sampled, dtype=torch.float64)


def _steps(output: Any) -> Any:
    return zip(output.logprobs, output.token_ids, strict=True)


def countdown() -> list[str]:
    """Return prompts in the form of the demo's task."""
    draw = random.Random(0)
    return [f"{draw.randint(1, 9)} {draw.randint(1, 9)} {draw.randint(1, 9)}={draw.randint(1, 40)}:" for _ in range(64)]


if __name__ == "__main__":
    main()
