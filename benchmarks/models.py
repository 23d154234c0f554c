"""Which architectures of transformers the learner trains right, and the engine samples right after a weight sync.

    python benchmarks/models.py                     # the learner, about a minute
    python benchmarks/models.py --engine            # the engine too, about 10 s for each model
    python benchmarks/models.py --write             # writes docs/models.md from docs/evidence/models.json

Each model of `benchmarks/tiny_models.py` is tried by itself. Results are kept in the JSON file, and only those that are
measured again are replaced. `--only` names models.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import socket
import sys
import warnings
from importlib import metadata
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tiny_models import VOCABULARY, make, names
from benchmarks.weight_sync import ROOT, machine
from learner.model.lora import add_adapter, coverage
from learner.model.policy import Policy, use_attention
from learner.model.rotary import fix_rotary_length
from learner.model.self_test import layout_of, row_of
from maxpo.batches.packing import own_part
from maxpo.config import LoraConfig
from maxpo.errors import InputError

DOCUMENT, RESULTS = ROOT / "docs/models.md", ROOT / "docs/evidence/models.json"
LENGTHS = (17, 3, 40, 2, 17, 33, 9, 5)
"""Tokens of the sequences. Others than those of the self-test, an even number of tokens in all."""
LONGEST = 256
SHARED_TIMEOUT_S = 30.0
ROUNDING = 1e-3
"""Difference in nats up to which two computations in float32 count as equal."""
ENGINE_CAUSES = {
    "apertus": "vLLM holds two parameters of the activation in bfloat16",
    "axk1": "vLLM's dense layers have a norm that those of transformers lack",
    "deepseek_v2": "latent attention on CPU, cause unknown",
    "deepseek_v3": "latent attention on CPU, cause unknown",
    "glm4_moe_lite": "latent attention on CPU, cause unknown",
    "cohere2": "a window of vLLM's layers holds one token more than in transformers",
    "cohere2_moe": "a window of vLLM's layers holds one token more than in transformers",
    "ernie4_5_moe": "vLLM's router on CPU leaves out the bias of a softmax router",
    "gpt2, scaled by layer": "vLLM does not have this setting",
}
"""Reasons for differences between vLLM and transformers and for errors, as found in their code."""
TITLE = """# Models

The tiny random models of `benchmarks/tiny_models.py`: one for each text decoder of transformers {transformers}, with every
kind of layer, and variants. `python benchmarks/models.py --engine --write` made this page. The same self-test runs
before each training, on the model of the run (`model.self_test`). So a model that is not listed here, or has other
settings, is trained right too, or is refused before the start.

| column | content |
| --- | --- |
| rows | packed: sequences follow each other in a row. padded: one sequence a row, padded to the longest of its microbatch, which costs time. refused: not trained |
| nats | largest difference of a token's log-probability between the learner and each sequence alone in transformers |
| LoRA | share of the weights in matrices, besides embeddings and head, that `learner.lora` adapts |
| shared rows | largest difference in nats with `learner.sequence_parallel: 2` on two ranks, or no |
| engine | largest difference in nats of 36 greedy tokens between vLLM on CPU and transformers: as loaded, then after syncs of changed weights. Empty: not tried yet |
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), metavar="MODEL")
    parser.add_argument("--engine", action="store_true", help="start a vLLM engine for each model too")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    results = {name: result for name, result in results.items() if name in names()}
    for name in args.only:
        results[name] = results.get(name, {}) | measure(name)
    packed = [name for name in args.only if results[name]["rows"] == "packed"]
    for name, shared in share_rows(packed).items():
        results[name]["shared"] = shared
    for name, result in results.items():
        print(" | ".join(row(name, result)))
    if args.engine:
        engines(args.only, results, args.json)
    save(results, args.json)
    if args.write:
        DOCUMENT.write_text(document(results), encoding="utf-8")


def save(results: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n", encoding="utf-8")


def measure(name: str) -> dict[str, Any]:
    """Return the figures of the learner alone."""
    lm, expected = model(name), by_transformers(model(name))
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in lm.parameters())}
    try:
        report = layout_of(lm)
    except InputError as error:
        return found | {"rows": "refused", "cause": str(error)}
    logprobs, _ = Policy(lm, layout=report.layout)(row_of(sequences()), temperature=1.0, chunk=64)
    found |= {
        "rows": "packed" if report.layout == "packed" else "padded",
        "cause": report.cause,
        "nats": gap(logprobs, expected),
    }
    return found | adapter(name)


def adapter(name: str) -> dict[str, Any]:
    """Return the share of the matrices that an adapter covers, in percent, and the rest in words."""
    lora, lm = LoraConfig(rank=4), make(name)
    try:
        said = coverage(lm, lora)
        add_adapter(lm, lora, seed=0)
    except InputError as error:
        return {"lora": None, "lora_cause": str(error)}
    share = re.search(r"on (\d+) %", said)
    assert share is not None
    without = re.search(r"none on ([^;]*)", said)
    return {"lora": int(share[1]), "lora_cause": without and f"no adapter on {without[1]}"}


def share_rows(packed: list[str]) -> dict[str, float | str]:
    """Return for each model the difference in nats where two ranks share rows, or the reason why they cannot."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, (port, packed, queue), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return queue.get()


def _rank(rank: int, port: int, packed: list[str], queue: Any) -> None:
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    import deepspeed

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False)
    from learner.model.sequence_parallel import SequenceGroup

    group, found = SequenceGroup(2, SHARED_TIMEOUT_S), dict[str, float | str]()
    for name in packed:
        batch = own_part(row_of(sequences()), rank, 2)
        try:
            with torch.no_grad():
                logprobs, _ = Policy(model(name), group)(batch, temperature=1.0, chunk=64)
        # Both ranks fail alike, in whatever way the code of the model does.
        except Exception as error:
            found[name] = str(error)
            continue
        dist.all_reduce(logprobs)
        if rank == 0:
            found[name] = gap(logprobs, by_transformers(model(name)))
    if rank == 0:
        queue.put(found)
    dist.barrier()


def engines(chosen: list[str], results: dict[str, Any], path: Path) -> None:
    """Try each model in an engine, and keep the results after each."""
    from benchmarks.engine_check import check

    for found in check(chosen):
        results[found["name"]]["engine"] = found
        print(json.dumps(found), flush=True)
        save(results, path)


def model(name: str) -> PreTrainedModel:
    lm = make(name)
    fix_rotary_length(lm, LONGEST)
    return lm.requires_grad_(False)


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in LENGTHS]


def by_transformers(lm: PreTrainedModel) -> Tensor:
    """Return the log-probabilities of all tokens but the first of each sequence, one sequence at a time."""
    use_attention(lm, "eager")
    found: list[Tensor] = []
    for tokens in sequences():
        logits = lm(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        found.append(logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0])
    return torch.cat(found)


def gap(logprobs: Tensor, expected: Tensor) -> float:
    got = torch.cat([part[1:] for part in logprobs.split(LENGTHS)])
    return float((got - expected).abs().max())


def document(results: dict[str, Any]) -> str:
    """Return the text of docs/models.md."""
    lines = ["| model | parameters | rows | nats | LoRA | shared rows | engine |", "|" + " --- |" * 7]
    lines += [f"| {' | '.join(row(name, result))} |" for name, result in sorted(results.items())]
    causes = [f"- {name}: {cause}" for name, result in sorted(results.items()) for cause in reasons(name, result)]
    counted = ", ".join(
        f"{sum(r['rows'] == kind for r in results.values())} {kind}" for kind in ("packed", "padded", "refused")
    )
    here = ", ".join(f"{key} {value}" for key, value in machine().items())
    version = metadata.version("transformers")
    return "\n".join(
        [
            TITLE.format(transformers=version),
            f"{len(results)} models: {counted}.\n",
            *lines,
            "\n## Causes\n",
            *causes,
            f"\n{here}, transformers {version}; float32, one thread. vLLM also runs, by code of transformers, models "
            "that it has no code for.\n",
        ]
    )


def row(name: str, result: dict[str, Any]) -> list[str]:
    """Return the cells of a model."""
    shared, lora = result.get("shared"), result.get("lora")
    return [
        name,
        f"{result['parameters']:,}",
        result["rows"],
        nats(result.get("nats")),
        "no" if lora is None else f"{lora} %",
        nats(shared) if isinstance(shared, float) else "no",
        engine_cell(result.get("engine")),
    ]


def nats(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def engine_cell(engine: dict[str, Any] | None) -> str:
    if engine is None:
        return ""
    if "start" not in engine:
        return "no"
    return f"{nats(engine['start'])}, {nats(max(engine['synced'])) if engine['synced'] else 'no sync'}"


def reasons(name: str, result: dict[str, Any]) -> list[str]:
    """Return the sentences about a model."""
    found: list[str] = []
    if result.get("cause"):
        found.append(f"{result['rows']}: {result['cause']}")
    if result.get("lora_cause"):
        found.append(f"LoRA: {result['lora_cause'].removeprefix('learner.lora.targets: ')}")
    if isinstance(result.get("shared"), str):
        found.append(f"no shared rows: {result['shared']}")
    engine: dict[str, Any] = result.get("engine") or {}
    why = ENGINE_CAUSES.get(name, ENGINE_CAUSES.get(name.partition(",")[0]))
    if "error" in engine:
        found.append(f"engine: {'; '.join(x for x in (why, engine['error']) if x)}")
    elif engine and (worst := max(engine["start"], *engine["synced"])) > ROUNDING:
        found.append(f"engine: {worst:.2g} nats from transformers; {why or 'cause unknown'}")
    # Some errors hold the text of a whole module.
    short = [shorten(" ".join(sentence.split()), 300, placeholder=" ...") for sentence in found]
    return [re.sub(r"\bmodel\.(?=[a-z])", "", sentence) for sentence in short]


if __name__ == "__main__":
    main()
