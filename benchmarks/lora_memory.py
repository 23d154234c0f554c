"""Memory of the learner, with all parameters trained and with an adapter.

    python benchmarks/lora_memory.py

Each line of the table is a process with one rank of the real learner on CPU and a few updates of random tokens. The
table has the bytes of its tensors by purpose, and the peak memory of the process. The model is that of the demo, or a
randomly initialised Llama of the shape of SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.weight_sync import DEMO, machine, random_model
from maxpo.config import AlgorithmConfig, LearnerConfig, LoraConfig
from maxpo.types import Completion, Group, Prompt, ScoredGroup, StepBatch

PURPOSES = ("frozen", "trained", "gradients", "masters", "moments")
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter, in all linear layers")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--one", nargs=4, metavar=("MODEL", "STAGE", "DTYPE", "RANK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        model, stage, dtype, rank = args.one
        print(json.dumps(measure(model, int(stage), dtype, int(rank), args.updates)))
        return
    print(f"{machine()}\nMiB; ZeRO stage and format of the weights in the first column\n")
    print("| model | learner |", " | ".join(PURPOSES), "| sum | peak RSS | growth |")
    print("|" + " --- |" * (len(PURPOSES) + 5))
    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        models = {"demo, 0.45 M": DEMO, "135 M": random_model(Path(folder) / "model", "float32")}
        for name, path in models.items():
            for stage, dtype in ((0, "float32"), (2, "bfloat16")):
                for rank in (0, args.rank):
                    own = [str(path), str(stage), dtype, str(rank)]
                    command = [sys.executable, __file__, "--updates", str(args.updates), "--one", *own]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        sys.exit(done.stderr)
                    got = json.loads(done.stdout.splitlines()[-1])
                    values = [got[purpose] for purpose in PURPOSES]
                    cells = [f"{v / MIB:.1f}" for v in (*values, sum(values), got["rss"], got["rss"] - got["before"])]
                    what = f"LoRA {rank}" if rank else "full"
                    print(f"| {name} | {what}, ZeRO {stage}, {dtype} |", " | ".join(cells), "|", flush=True)


def measure(path: str, stage: int, dtype: str, rank: int, updates: int) -> dict[str, int]:
    """Measure bytes by purpose when the last gradients exist, and memory of the process before and at its peak."""
    import torch.distributed as dist

    from maxpo.weights.rendezvous import serve_store

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    store, _ = serve_store("127.0.0.1", 60)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    from learner.deepspeed_engine import TrainEngine
    from learner.model.loading import load_language_model
    from learner.model.lora import add_adapter
    from learner.model.policy import Policy
    from learner.update.updater import Updater

    lora = LoraConfig(rank=rank)
    learner = LearnerConfig(lr=1e-5, dtype=dtype, zero_stage=stage, token_budget=512, lora=lora)  # type: ignore[arg-type]
    import deepspeed  # noqa: F401  (so that its own memory is not counted)

    before = resident("VmRSS")
    lm = load_language_model(path, getattr(torch, dtype), trust_remote_code=False)
    if rank:
        add_adapter(lm, lora, seed=0)
    engine = TrainEngine(Policy(lm), learner, torch.device("cpu"))
    algorithm = AlgorithmConfig(k=2, group_size=4, aggregation="token_mean")
    updater = Updater(
        engine, None, learner, algorithm, rank=0, temperature=1.0, aggregation_constant=1.0, total_steps=updates
    )
    found: dict[str, int] = {}
    step = engine.step

    def count(lr: float) -> Any:
        found["gradients"] = gradients(engine)
        return step(lr)

    engine.step = count
    for number in range(1, updates + 1):
        updater.update(random_batch(number))
    parameters = list(engine.module.parameters())
    found["frozen"] = size([p for p in parameters if not p.requires_grad])
    found["trained"] = size([p for p in parameters if p.requires_grad])
    adam = engine.optimizer
    owners = [p for group in adam.param_groups for p in group["params"]]
    found["masters"] = size([p for p in owners if all(p is not own for own in parameters)])
    found["moments"] = size([t for s in adam.state.values() for t in s.values() if t.dim()])
    found |= {"before": before, "rss": resident("VmHWM")}
    dist.destroy_process_group()
    return found


def gradients(engine: Any) -> int:
    """Return the bytes of the gradients before the step: those of the parameters, or of ZeRO's partitions."""
    held = [p.grad for p in engine.module.parameters() if p.grad is not None]
    optimizer = engine.deepspeed.optimizer
    for partition in getattr(optimizer, "averaged_gradients", {}).values():
        held += [t for t in partition or () if t is not None]
    held += getattr(optimizer, "fp32_groups_gradients_flat", [])  # ZeRO-1 in bfloat16
    if engine.stage == 3:
        held.append(optimizer.grad_partitions_flat_buffer)
    return size(held)


def size(tensors: list[torch.Tensor]) -> int:
    """Return the bytes of memory of these tensors. Shared memory counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def resident(which: str) -> int:
    """Return the memory of this process in bytes: current (VmRSS) or highest so far (VmHWM, without its parent's)."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def random_batch(step: int) -> StepBatch:
    """Return 4 groups of 4 completions of 24 tokens, all with an advantage."""
    draw = torch.Generator().manual_seed(step)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 60, (count,), generator=draw).tolist())

    def completion() -> Completion:
        return Completion(
            text="",
            token_ids=np.array(tokens(24), np.int32),
            logprobs=np.full(24, -4.0, np.float32),
            finish_reason="stop",
            versions=((0, 0),),
        )

    groups = tuple(
        ScoredGroup(
            group=Group(
                prompt=Prompt(prompt_id=str(g), text="", token_ids=tokens(8), reference=None, source=""),
                completions=tuple(completion() for _ in range(4)),
            ),
            rewards=(0.0, 1.0, 2.0, 3.0),
            successes=(False, True, True, True),
            valid=(True,) * 4,
            outcomes=("ok",) * 4,
        )
        for g in range(4)
    )
    signal = tuple(group.valid for group in groups)
    return StepBatch(groups=groups, signal=signal, sampled_sequences=16, sampled_tokens=16 * 24, step=step, k=(2,) * 4)


if __name__ == "__main__":
    main()
