"""A real training under random kills, compared with an undisturbed one.

    python benchmarks/chaos.py --minutes 16 --mtbf 40 --seed 0 --out runs/chaos

The script uses Ray, vLLM, DeepSpeed and the demo model. It kills at random moments, on average every --mtbf seconds:
rollout worker actors, processes of their engines, verifiers, and with --learner the learner. Some engines are stopped
instead of killed, so they hang. --whole times everything is killed at once and resumed. Then the first steps are run
undisturbed, and the two runs are compared. The script prints kills by kind and by stage of the step, groups lost and
doubled, the time until all workers serve again, and the share of the time that the run would need without failures.

Every group has a number, its position in the order of admission. Over all restarts and resumes each number below that
of the next prompt must be in the samples of exactly one step, with its prompt and all its completions, or in the
buffer of the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from maxpo.files import step_name  # noqa: E402
from maxpo.rewards.registry import REWARDS  # noqa: E402

STAGES = ("generate", "score", "update", "sync", "checkpoint")
KINDS = ("worker", "engine", "hung engine", "verifier")
WORKERS = 2
PROMPTS = 16
SETTINGS = [
    *("run.steps=100000", "run.overwrite=false", "eval.at_start=false", "eval.at_end=false"),
    *(f"algorithm.prompts_per_step={PROMPTS}", f"tracking.save_rollouts={PROMPTS}", "tracking.tensorboard=false"),
    *(f"rollout.workers={WORKERS}", "rollout.max_concurrent_sequences=128", "rollout.max_restarts=100"),
    "rollout.health_timeout_s=10",
    *("reward.workers=2", "reward.verifier=benchmarks.chaos:unhurried"),
    *("learner.cpu_threads=1", "learner.max_restarts=100", "sync.timeout_s=60"),
    *("checkpoint.every=5", "checkpoint.asynchronous=true", "checkpoint.keep_last=3"),
]


def unhurried(prompt: str, text: str, reference: Any) -> float:
    """Score like the verifier of the demo, but slowly enough to be killed at work."""
    time.sleep(0.002)
    return REWARDS["countdown"](text, reference).reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=16, help="length of the disturbed run")
    parser.add_argument("--mtbf", type=float, default=40, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--learner", action="store_true", help="kill the learner too, as often as any other kind")
    parser.add_argument("--staleness", type=int, default=0, help="pipeline.max_staleness of both runs")
    parser.add_argument("--whole", type=int, default=1, help="how often everything is killed at once, evenly spread")
    parser.add_argument(
        "--compare",
        type=int,
        default=250,
        help="steps to run undisturbed at most, 0: none; all would take their median times the number (default: 250)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; must not exist")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--child", choices=["train", "resume"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.exit(child(args))
    args.out.mkdir(parents=True)
    disturbed, undisturbed = args.out / "disturbed", args.out / "undisturbed"

    begun = time.time()
    training_since, whole_kills = run_disturbed(args, disturbed)
    ended = time.time()
    steps = max(int(folder.name.removeprefix("step_")) for folder in (disturbed / "checkpoints").glob("step_*"))

    if args.compare:
        command = [sys.executable, "-m", "launch.cli", "train", "configs/presets/demo.yaml", *settings(args.staleness)]
        command += [f"run.dir={args.out}", "run.name=undisturbed", f"run.steps={min(steps, args.compare)}"]
        with (args.out / "undisturbed.txt").open("w") as output:
            subprocess.run(command, stdout=output, stderr=output, env=environment(), cwd=ROOT, check=True)

    kills = whole_kills + [json.loads(line) for line in (args.out / "kills.jsonl").read_text().splitlines()]
    report = account(disturbed, undisturbed, kills, steps, ended - training_since) | {
        "max_staleness": args.staleness,
        "minutes": (ended - begun) / 60,
        "mtbf_s": args.mtbf,
        "seed": args.seed,
        "cores": len(os.sched_getaffinity(0)),
    }
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def settings(staleness: int) -> list[str]:
    if not staleness:
        # With this setting the weights depend only on the sampled tokens, not on the last bit of their
        # log-probabilities, so that the run without kills must have the same samples.
        return [*SETTINGS, "algorithm.tis_cap=null"]
    return [*SETTINGS, f"pipeline.max_staleness={staleness}", "rollout.overcommit=2"]


def run_disturbed(args: argparse.Namespace, run: Path) -> tuple[float, list[dict[str, Any]]]:
    """Return the time of the first step, and the kills of everything."""
    part_s, since, kills = args.minutes * 60 / (args.whole + 1), 0.0, list[dict[str, Any]]()
    for part in range(args.whole + 1):
        last = part == args.whole
        process = start(args, part, time.time() + part_s if last else time.time() + 1e9)
        if not part:
            wait_for_step(run, 1, process)
            since = time.time()
        try:
            code = process.wait(None if last else part_s)
        except subprocess.TimeoutExpired:
            when = kill_everything(process)
            step = last_step_before(run, when)
            kills.append({"time": when, "kind": "whole run", "stage": "any", "step": step})
        else:
            if not last or code != 75:
                sys.exit(f"the disturbed run ended with {code} instead of 75: see {args.out / 'output.txt'}")
    return since, kills


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def start(args: argparse.Namespace, part: int, until: float) -> subprocess.Popen[bytes]:
    """Make a part of the disturbed run, in a process that also kills."""
    mode = "resume" if part else "train"
    command = [sys.executable, __file__, "--child", mode, "--out", str(args.out), "--mtbf", str(args.mtbf)]
    command += ["--seed", str(args.seed + part), "--staleness", str(args.staleness)]
    command += ["--learner"] if args.learner else []
    with (args.out / "output.txt").open("a") as output:
        env = environment() | {"MAXPO_CHAOS_UNTIL": str(until)}
        return subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=ROOT)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    while not any(row["step"] >= step for row in rows(run)):
        if process.poll() is not None:
            sys.exit(f"the run ended with {process.returncode}: see {run.parent / 'output.txt'}")
        time.sleep(0.2)


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the complete step lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [row for line in lines if line.endswith("\n") and "time/step_s" in (row := json.loads(line))]


def kill_everything(process: subprocess.Popen[bytes]) -> float:
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for action in (psutil.Process.suspend, psutil.Process.kill):
        for member in family:
            try:
                action(member)
            except psutil.NoSuchProcess:
                continue
    now = time.time()
    process.wait()
    return now


def last_step_before(run: Path, when: float) -> int:
    return max((row["step"] for row in rows(run) if row["time"] <= when), default=0)


# ---- the disturbed run -------------------------------------------------------------------------------------------


def child(args: argparse.Namespace) -> int:
    """Train in this process, with a thread that kills. The thread ends the run with a request to stop."""
    from rich.console import Console

    from launch.cluster.ray_environment import secure_own_cluster

    secure_own_cluster()
    import launch.run.training
    from launch.run.signals import PREEMPTED, PreemptedError
    from launch.terminal.progress import Terminal
    from maxpo.configure.loading import load_config

    now = {"stage": "", "step": 0}

    class Telling(Terminal):
        def stage(self, name: str, total: int = 0) -> None:
            now["stage"] = name
            super().stage(name, total)

        def step_done(self, step: int, metrics: dict[str, float]) -> None:
            now["step"] = step
            super().step_done(step, metrics)

    launch.run.training.Terminal = Telling
    overrides = [*settings(args.staleness), f"run.dir={args.out}", "run.name=disturbed"]
    overrides += [f"checkpoint.resume={'must' if args.child == 'resume' else 'never'}"]
    loaded = load_config([ROOT / "configs/presets/demo.yaml"], overrides)
    kinds = [*KINDS, *(["learner"] if args.learner else [])]
    until = float(os.environ["MAXPO_CHAOS_UNTIL"])
    record = args.out / "kills.jsonl"
    threading.Thread(target=killer, args=(now, kinds, args.mtbf, args.seed, record, until), daemon=True).start()
    try:
        return launch.run.training.run_training(loaded, Console())
    except PreemptedError:  # the end came before the first step of an attempt
        return PREEMPTED


def killer(now: dict[str, Any], kinds: Sequence[str], mtbf: float, seed: int, record: Path, until: float) -> None:
    draw = random.Random(seed)
    while not now["stage"]:
        time.sleep(0.1)
    while True:
        moment = time.time() + draw.expovariate(1 / mtbf)
        kind, stage = draw.choice(kinds), draw.choice(STAGES)
        delay = draw.random()
        while time.time() < moment:
            if time.time() > until:
                os.kill(os.getpid(), signal.SIGUSR1)
                return
            time.sleep(0.05)
        # Stages last from milliseconds to seconds, so a random moment would nearly always be in the longest stage.
        end = time.time() + 10
        while now["stage"] != stage and time.time() < end:
            time.sleep(0.001)
        time.sleep(delay * (0.05 if stage in ("sync", "checkpoint") else 0.3))
        while (victims := find(kind)) == []:
            time.sleep(0.2)
        victim = draw.choice(victims)
        row = {"time": time.time(), "kind": kind, "stage": now["stage"], "step": now["step"], "pid": victim.pid}
        try:
            victim.suspend() if kind == "hung engine" else victim.kill()
        except psutil.NoSuchProcess:
            continue
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")


def find(kind: str) -> list[psutil.Process]:
    """Return the processes of the given kind below this process."""
    title = {"learner": "ray::LearnerWorker"}.get(kind, "ray::RolloutWorker")
    if kind == "verifier":
        return [p for p in psutil.Process().children() if "spawn_main" in command_of(p)]
    actors = [p for p in psutil.Process().children(recursive=True) if command_of(p).startswith(title)]
    if kind in ("worker", "learner"):
        return actors
    try:
        cores = [p for actor in actors for p in actor.children() if p.memory_info().rss > 200 << 20]
        return [p for p in cores if p.status() != psutil.STATUS_STOPPED]
    except psutil.NoSuchProcess:
        return []


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# ---- the comparison ----------------------------------------------------------------------------------------------


def account(
    disturbed: Path, undisturbed: Path, kills: list[dict[str, Any]], steps: int, seconds: float
) -> dict[str, Any]:
    metrics, calm = [row for row in rows(disturbed) if row["step"] <= steps], rows(undisturbed)
    masked = same = 0
    for step in range(1, steps + 1):
        ours = samples(disturbed, step)
        masked += sum(row["reward"] is None for row in ours)
        same += step <= len(calm) and ours == samples(undisturbed, step)
    recovered: dict[str, list[float]] = {}
    resumed: dict[str, list[float]] = {}
    for kill in kills:
        after = [r for r in metrics if r["time"] > kill["time"] and r["step"] > kill["step"]]
        whole = [r for r in after if r["rollout/workers_alive"] == WORKERS]
        # None: the run ended first.
        for found, times in ((after, resumed), (whole, recovered)):
            if found:
                times.setdefault(kill["kind"], []).append(found[0]["time"] - kill["time"])
    intervals = [after["time"] - before["time"] for before, after in pairwise(calm)]
    need = median(intervals) * steps if intervals else 0.0
    cost = (seconds - need) / len(kills)
    steps_lines = Counter(row["step"] for row in metrics)
    return {
        "steps": steps,
        "steps_missing_or_twice": sum(steps_lines[step] != 1 for step in range(1, steps + 1)),
        "kills": dict(Counter(kill["kind"] for kill in kills)),
        "kills_by_stage": dict(Counter(kill["stage"] for kill in kills)),
        **groups_of(disturbed, steps),
        "staleness_max": max(row["staleness/max"] for row in metrics),
        "answers_masked": masked,
        "steps_compared_with_undisturbed": len(calm),
        "steps_with_the_same_samples": same,
        "until_the_next_step_s": summary(resumed),
        "until_whole_again_s": summary(recovered),
        "undisturbed_s": round(need, 1),
        "disturbed_s": round(seconds, 1),
        "seconds_between_kills": round(seconds / len(kills), 1),
        "effective_training_time": round(need / seconds, 3),
        # Each kill costs what it costs here. Kills that overlap in this run may cost more or less than alone.
        "seconds_lost_by_a_kill": round(cost, 1),
        "effective_training_time_at_a_kill_every_120_s": round(1 - cost / 120, 3),
    }


def groups_of(run: Path, steps: int) -> dict[str, int]:
    """Count the groups that are lost or doubled, by their numbers."""
    from launch.run.preflight import load_data
    from maxpo.configure.loading import load_config
    from maxpo.data.order import PromptStream

    config = load_config([ROOT / "configs/presets/demo.yaml"], SETTINGS).config
    stream, size = PromptStream(load_data(config)[0], config.run.seed), config.algorithm.group_size
    found = Counter(row["group"] for step in range(1, steps + 1) for row in samples(run, step))
    prompts = {row["group"]: row["prompt_id"] for step in range(1, steps + 1) for row in samples(run, step)}
    state = json.loads((run / "checkpoints" / step_name(steps) / "state.json").read_text())
    pending = [group["number"] for group in state["buffer"]]
    admitted = range(state["stream"]["cursor"])
    wrong = [n for n in found if n not in admitted or prompts[n] != stream.at(n).prompt_id]
    whole = Counter(pending) + Counter({n: math.ceil(count / size) for n, count in found.items() if count >= size})
    return {
        "groups": len(found),
        "groups_pending": len(pending),
        "groups_lost": sum(whole[n] == 0 for n in admitted) + len(wrong),
        "groups_doubled": sum(count > 1 for count in whole.values()),
    }


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        kind: {"median": round(median(seconds), 1), "worst": round(max(seconds), 1), "of": len(seconds)}
        for kind, seconds in times.items()
    }


def samples(run: Path, step: int) -> list[dict[str, Any]]:
    """Return the samples of a step without the version labels, which a resume may shift."""
    lines = (run / "rollouts" / f"{step_name(step)}.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "weight_version"} for line in lines]


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "kills", "s until the next step: median", "worst", "until all serve again: median", "worst")
    for kind, n in report["kills"].items():
        times = [report[key].get(kind, {}) for key in ("until_the_next_step_s", "until_whole_again_s")]
        table.add_row(kind, str(n), *[str(t.get(name, "")) for t in times for name in ("median", "worst")])
    console = Console()
    console.print(table)
    for key, value in report.items():
        if key not in ("kills", "until_the_next_step_s", "until_whole_again_s"):
            console.print(f"{key:45} {value}", highlight=False)


if __name__ == "__main__":
    main()
