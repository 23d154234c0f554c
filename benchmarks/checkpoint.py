"""Time that training waits for a checkpoint, with and without writing in the background.

    python benchmarks/checkpoint.py --dtype float32 --rounds 5

The script starts the real learner, with a randomly initialised Llama of the shape of SmolLM2-135M, on its own Ray
cluster. It measures both ways in turn, on the same disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.weight_sync import ROOT, machine, random_model
from launch.cluster.ray_environment import secure_own_cluster
from maxpo.files import step_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the learner")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    secure_own_cluster()
    with tempfile.TemporaryDirectory(prefix="maxpo-bench-") as folder:
        report = {"machine": machine()} | measure(args, random_model(Path(folder) / "model", args.dtype), Path(folder))
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    from launch.cluster.placement import place
    from launch.cluster.placement_groups import placement_groups
    from launch.cluster.ray_cluster import cluster
    from learner.group import LearnerGroup
    from maxpo.checkpoints.local import Checkpoints
    from maxpo.configure.loading import load_config

    overrides = [f"run.dir={folder}", f"model.path={model}", f"learner.dtype={args.dtype}"]
    config = load_config([ROOT / "configs/presets/demo.yaml"], overrides).config
    waits: dict[bool, list[float]] = {False: [], True: []}
    background: list[float] = []
    with ExitStack() as resources:
        gpus = resources.enter_context(cluster(config, folder / "log"))
        places = place(config, gpus=gpus)
        room = resources.enter_context(placement_groups(places, config))
        learner = LearnerGroup(config, places.learner_device, places.sync_backend, room.rank)
        learner.begin_start()
        learner.finish_start()
        for step in range(1, args.rounds + 1):
            for asynchronous in (False, True):
                target = Checkpoints(folder / "checkpoints", keep_last=1, asynchronous=asynchronous)
                started = time.perf_counter()
                target.write(step, {}, {}, lambda to: learner.save(to, policy=False))
                waits[asynchronous].append(time.perf_counter() - started)
                if written := target.wait():
                    background.append(written["time/checkpoint_write_s"])
        newest = folder / "checkpoints" / step_name(args.rounds)
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        learner.shutdown()
    shutil.rmtree(folder / "checkpoints")
    return {
        "settings": {"dtype": args.dtype, "rounds": args.rounds, "device": places.learner_device},
        "bytes": size,
        "training_waits_on_the_spot_s": waits[False],
        "training_waits_in_the_background_s": waits[True],
        "written_in_the_background_s": background,
        "medians_s": [round(median(times), 2) for times in (waits[False], waits[True], background)],
    }


if __name__ == "__main__":
    main()
