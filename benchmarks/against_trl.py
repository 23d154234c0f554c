"""Speed of a whole training step beside TRL's GRPOTrainer on this machine's CPU.

    make setup-trl                                            # TRL in an environment of its own, .venv-trl
    maxpo fetch-model smollm2-135m --to models/smollm2-135m   # for the case smollm2
    python benchmarks/against_trl.py --json out.json

Both sides train the same model on the same prompts in the same order, in the same number format, with as many samples,
the same reward, temperature 1 and a learning rate that moves nothing, so both sample from one distribution. Each side
is a process that is started once. The sides take turns, some steps at a time, while the others wait, so that other load
on the machine meets all of them. In the case smollm2 they run one after the other, for lack of memory. Steps are
measured from the end of one to the end of the next, logs included. The script compares the numbers of sampled tokens,
which must be equal up to a thousandth (case smollm2, whose end of sequence is moved to a token that is next to never
sampled) or up to chance (the toy cases, whose completions end by themselves).

`maxpo` computes every sample, as TRL does. `maxpo, drop` leaves out samples without signal, its default. Two further
sides are measured if `--sides` names them: two engines, and sampling of the next step during the update.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Only the standard library: the environment of TRL has none of the packages of this project.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
NEVER_SAMPLED = "<reponame>"
"""A token of SmolLM2's vocabulary for pre-training, which ends next to no completion of these prompts."""
SIDES = {
    "maxpo": ["algorithm.drop_zero_signal=false"],
    "maxpo, drop": ["algorithm.drop_zero_signal=true"],
    "maxpo, 2 engines": ["algorithm.drop_zero_signal=false", "rollout.workers=2"],
    "maxpo, pipeline": ["algorithm.drop_zero_signal=false", "pipeline.max_staleness=1"],
    "trl": [],
}
"""Settings of each side."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload."""

    preset: str
    prompts: int
    group_size: int
    dtype: str
    micro_batch: int
    """Samples of TRL in memory at once."""
    settings: tuple[str, ...] = ()
    sides: tuple[str, ...] = ("maxpo", "maxpo, drop", "trl")
    warm_up: int = 3
    """Steps of each side that are not counted."""
    apart: bool = False
    """True if one side runs after the other, because they do not fit into the memory of a small machine together."""
    exact: bool = False
    """True if every completion has the same length."""


CASES = {
    "toy-16": Case(preset="demo", prompts=16, group_size=16, dtype="float32", micro_batch=256),
    "toy-32": Case(preset="demo", prompts=32, group_size=16, dtype="float32", micro_batch=512),
    "smollm2": Case(
        preset="smollm2",
        prompts=8,
        group_size=16,
        dtype="bfloat16",
        micro_batch=32,
        settings=("rollout.workers=1",),
        apart=True,
        warm_up=1,
        exact=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="default: those of the case")
    parser.add_argument("--blocks", type=int, default=4, help="turns of each side")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=2, help="of MaxPO's learner, and of TRL")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of MaxPO")
    parser.add_argument("--smollm2", type=Path, default=ROOT / "models/smollm2-135m", help="folder of the model")
    parser.add_argument("--trl-python", type=Path, default=ROOT / ".venv-trl/bin/python", help="Python with TRL")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # a side: the file of its task
    args = parser.parse_args()
    if args.serve:
        serve(json.loads(args.serve.read_text(encoding="utf-8")))
        return
    if "trl" in (args.sides or SIDES) and not args.trl_python.exists():
        parser.error(f"{args.trl_python} is missing: run make setup-trl")
    from benchmarks.weight_sync import machine

    found = machine() | {"load before": os.getloadavg()}
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    print("Run this on a quiet machine: with other load, spinning threads of TRL lose most.\n")
    report: dict[str, Any] = {"machine": found, "cases": {}}
    for name in args.cases:
        report["cases"][name] = result = run_case(CASES[name], args)
        show(name, result)
    report["machine"]["load after"] = os.getloadavg()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_case(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Let the sides take turns; return their blocks."""
    sides = args.sides or case.sides
    total = case.warm_up + args.blocks * args.steps
    with tempfile.TemporaryDirectory(prefix="maxpo-trl-") as temporary:
        folder = Path(temporary)
        model = ROOT / "configs/models/countdown-0.5m"
        if case.preset == "smollm2":
            model = without_end(args.smollm2, folder / "model")
        overrides = settings_of(case, model, args, total)
        task = asdict(case) | {"model": str(model), "threads": args.threads, "total": total}
        task |= work(case, overrides, total)
        blocks: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for together in [[side] for side in sides] if case.apart else [sides]:
            with ExitStack() as ending:
                running: dict[str, Side] = {}
                for side in together:
                    name = side.replace(", ", "-").replace(" ", "-")
                    own = [*overrides, *SIDES[side], f"run.dir={folder / 'runs'}", f"run.name={name}"]
                    python = args.trl_python if side == "trl" else Path(sys.executable)
                    running[side] = ending.enter_context(
                        Side(side, python, folder, task | {"overrides": own, "folder": str(folder)})
                    )
                for side in running.values():
                    side.turn(case.warm_up)
                for _ in range(args.blocks):
                    for side, process in running.items():
                        blocks[side].append(process.turn(args.steps))
    return {"case": asdict(case), "threads": args.threads, "blocks": blocks} | summary(case, blocks)


def settings_of(case: Case, model: Path, args: argparse.Namespace, total: int) -> list[str]:
    """Return the settings of MaxPO."""
    return [
        f"model.path={model}",
        f"run.steps={total}",
        f"algorithm.prompts_per_step={case.prompts}",
        f"algorithm.group_size={case.group_size}",
        f"rollout.max_concurrent_sequences={case.prompts * case.group_size}",
        f"rollout.dtype={case.dtype}",
        f"learner.dtype={case.dtype}",
        f"learner.cpu_threads={args.threads}",
        "learner.lr=1e-9",
        *("checkpoint.every=0", "eval.every=0", "eval.at_start=false", "eval.at_end=false"),
        *case.settings,
        *args.set,
    ]


def without_end(source: Path, target: Path) -> Path:
    """Copy a model whose completions shall not end by themselves; return the copy."""
    if not source.is_dir():
        raise SystemExit(f"{source} is missing: maxpo fetch-model smollm2-135m --to models/smollm2-135m")
    shutil.copytree(source, target)
    vocabulary = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    (end,) = (token["id"] for token in vocabulary["added_tokens"] if token["content"] == NEVER_SAMPLED)
    new = {"tokenizer_config.json": NEVER_SAMPLED, "config.json": end, "generation_config.json": end}
    for name, value in new.items():
        content = json.loads((target / name).read_text(encoding="utf-8"))
        key = "eos_token" if name == "tokenizer_config.json" else "eos_token_id"
        (target / name).write_text(json.dumps(content | {key: value}), encoding="utf-8")
    return target


def work(case: Case, overrides: list[str], total: int) -> dict[str, Any]:
    """Return the prompts of all steps in MaxPO's order, as rows of TRL's dataset, and other things that TRL is told."""
    from transformers import AutoTokenizer

    from launch.run.preflight import prompts_of
    from maxpo.configure.loading import load_config
    from maxpo.data.order import PromptStream

    config = load_config([ROOT / f"configs/presets/{case.preset}.yaml"], overrides).config
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    train, _ = prompts_of(config, tokenizer, evaluation=False, say=lambda line: None)
    prompts = PromptStream(train, config.run.seed).next(case.prompts * total)
    rows = [{"prompt": p.text, "ids": list(p.token_ids), "reference": json.dumps(p.reference)} for p in prompts]
    return {"rows": rows, "verifier": config.reward.verifier, "max_new_tokens": config.rollout.max_new_tokens}


class Side:
    """A process that takes steps when asked. Use as a context manager."""

    def __init__(self, name: str, python: Path, folder: Path, task: dict[str, Any]) -> None:
        """Start the process. Its output goes to a file, whose end is shown if the process fails."""
        file = folder / f"{name}.json"
        file.write_text(json.dumps(task | {"side": name}), encoding="utf-8")
        self._log = folder / f"{name}.log"
        threads = {"OMP_NUM_THREADS": str(task["threads"])} if name == "trl" else {}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, __file__, "--serve", file],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | threads | {"HF_HUB_OFFLINE": "1"},
            )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # the side ends by itself
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def turn(self, steps: int) -> dict[str, Any]:
        """Let the side take steps, and return its measurements."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # told below, with the output of the process
            print(steps, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._log.stem} has ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        return json.loads(line)


class Turns:
    """A side's end of the conversation. `step` is called at the end of each step and waits for the next turn."""

    def __init__(self) -> None:
        """Take standard output for the answers. Whatever else is printed goes to standard error."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0

    def wait(self) -> None:
        """Wait for the next turn. Ends the process if there is none."""
        line = sys.stdin.readline()
        if not line:
            raise EndOfTurns
        self._left = int(line)
        self._steps: list[dict[str, float]] = []
        self._cpu, self._last = cpu_seconds(), time.perf_counter()

    def step(self, measured: dict[str, float]) -> None:
        """Note a step."""
        now = time.perf_counter()
        self._steps.append({"step_s": now - self._last} | measured)
        self._last, self._left = now, self._left - 1
        if self._left == 0:
            cpu = (cpu_seconds() - self._cpu) / len(self._steps)
            print(json.dumps({"steps": self._steps, "cpu_s": cpu}), file=self._answers, flush=True)
            self.wait()


class EndOfTurns(BaseException):
    """There is no further turn. Not an Exception, so that no handler of a trainer takes it."""


def cpu_seconds() -> float:
    """Return the CPU time of this process and all its descendants."""
    import psutil

    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def serve(task: dict[str, Any]) -> None:
    """Be a side until there is no further turn."""
    turns = Turns()
    with suppress(EndOfTurns):
        (serve_trl if task["side"] == "trl" else serve_maxpo)(task, turns)


def serve_maxpo(task: dict[str, Any], turns: Turns) -> None:
    """Train with MaxPO's own loop, engines and learner."""
    from launch.cluster.ray_environment import prepare_ray
    from maxpo.configure.loading import load_config

    loaded = load_config([ROOT / f"configs/presets/{task['preset']}.yaml"], task["overrides"])
    config = loaded.config
    prepare_ray(config.ray)
    from launch.cluster.system import system
    from launch.run.readiness import get_ready
    from maxpo.data.order import PromptStream
    from maxpo.loop.observer import Observer
    from maxpo.loop.train import Trainer
    from maxpo.tracking.run_log import RunLog

    ready = get_ready(loaded)
    folder = Path(config.run.dir, config.run.name)
    folder.mkdir(parents=True)

    class Measuring(Observer):
        def step_done(self, step: int, metrics: dict[str, float]) -> None:
            sampled = config.algorithm.prompts_per_step * config.algorithm.group_size
            turns.step(
                {
                    "generate_s": metrics["time/generate_s"] + metrics["time/score_s"],
                    "update_s": metrics["time/update_s"],
                    "sync_s": metrics["time/sync_s"],
                    "tokens": metrics["completions/tokens_mean"] * sampled,
                }
            )

    log = RunLog(folder, tensorboard=config.tracking.tensorboard, save_rollouts=config.tracking.save_rollouts)
    with system(config, folder / "log") as running:
        stream = PromptStream(ready.train, config.run.seed)
        trainer = Trainer(config, stream, [], running.rollouts, running.learner, log, Measuring())
        turns.wait()
        trainer.run()


def serve_trl(task: dict[str, Any], turns: Turns) -> None:
    """Train with TRL's GRPOTrainer. Its choices here are those that make it faster."""
    import datasets
    import torch
    import transformers
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(task["threads"])
    datasets.disable_progress_bars()
    rows = task["rows"]
    verifier = getattr(importlib.import_module(f"maxpo.rewards.verifiers.{task['verifier']}"), task["verifier"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"], padding_side="left")
    for row in rows[:50]:
        assert tokenizer(row["prompt"])["input_ids"] == row["ids"], "TRL would see other tokens"

    def reward(prompts: list[str], completions: list[str], reference: list[str], **kwargs: object) -> list[float]:
        return [verifier(text, json.loads(ref)).reward for text, ref in zip(completions, reference, strict=True)]

    samples = task["prompts"] * task["group_size"]
    config = GRPOConfig(
        output_dir=task["folder"],
        use_cpu=True,
        bf16=False,  # no autocast: the weights have the number format already
        model_init_kwargs={"dtype": task["dtype"]},
        per_device_train_batch_size=task["micro_batch"],
        gradient_accumulation_steps=samples // task["micro_batch"],
        num_generations=task["group_size"],
        max_completion_length=task["max_new_tokens"],
        gradient_checkpointing=False,
        shuffle_dataset=False,
        temperature=1.0,
        learning_rate=1e-9,
        max_steps=task["total"] + 1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    generate = 0.0

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            nonlocal generate
            started = time.perf_counter()
            result = super()._generate_and_score_completions(inputs)
            generate = time.perf_counter() - started
            self.sampled = float(result["completion_mask"].sum())
            return result

    class Measuring(transformers.TrainerCallback):
        began = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.wait()
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            turns.step({"generate_s": generate, "update_s": now - self.began - generate, "tokens": trainer.sampled})
            self.began = time.perf_counter()

    trainer = Timed(
        model=task["model"],
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_list([{k: r[k] for k in ("prompt", "reference")} for r in rows]),
        processing_class=tokenizer,
        callbacks=[Measuring()],
    )
    trainer.train()


def summary(case: Case, blocks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians of each side, and compare the numbers of tokens.

    Raises:
        SystemExit: The sides did not sample equally many tokens.
    """
    medians: dict[str, dict[str, float]] = {}
    for side, turns in blocks.items():
        steps = [step for turn in turns for step in turn["steps"]]
        every = {key: [step[key] for step in steps] for key in steps[0]}
        medians[side] = {key: median(values) for key, values in every.items()}
        medians[side]["tokens"] = sum(every["tokens"]) / len(steps)
        medians[side]["mean_s"] = sum(every["step_s"]) / len(steps)
        medians[side]["cpu_s"] = median(turn["cpu_s"] for turn in turns)
        medians[side]["tokens_per_s"] = medians[side]["tokens"] / medians[side]["step_s"]
    numbers = [each["tokens"] for each in medians.values()]
    apart = max(numbers) / min(numbers) - 1
    limit = 1e-3 if case.exact else 0.03
    if apart > limit:
        raise SystemExit(f"the sides sampled {numbers} tokens a step, which are not equal: the speeds say nothing")
    return {"medians": medians, "tokens_apart": apart}


def show(name: str, result: dict[str, Any]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    case, medians = result["case"], result["medians"]
    print(
        f"\n{name}: {case['prompts']} prompts x {case['group_size']} samples, {case['dtype']}, {result['threads']} "
        f"thread(s) of learner and TRL; tokens differ by {100 * result['tokens_apart']:.1f} %; load {os.getloadavg()}"
    )
    columns = ("step_s", "mean_s", "generate_s", "update_s", "sync_s", "cpu_s", "tokens", "tokens_per_s")
    table = Table("medians", *columns, "speed / trl", box=None)
    base: Sequence[float] = [medians["trl"]["tokens_per_s"]] if "trl" in medians else []
    for side, row in medians.items():
        cells = [f"{row[key]:.{0 if 'tokens' in key else 3}f}" if key in row else "-" for key in columns]
        table.add_row(side, *cells, *(f"{row['tokens_per_s'] / value:.2f}" for value in base))
    Console(highlight=False, width=150).print(table)


if __name__ == "__main__":
    main()
