"""Rules of the code base: who imports whom, and that documents and presets are true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maxpo.configure.loading import load_config
from maxpo.tracking.metrics import METRICS, check_names, markdown
from maxpo.types import WeightManifest
from tests.contracts.floors import FLOORS, arrows, room_of
from tests.fakes import FakeLearner, FakeRollouts

PACKAGES = ("maxpo", "rollout", "learner", "launch")
MAY_IMPORT = {
    "maxpo": {"maxpo"},
    "rollout": {"maxpo", "rollout"},
    "learner": {"maxpo", "learner"},
    "launch": set(PACKAGES),
}
HEAVY = {
    "vllm": {
        "rollout/vllm_engine/engine.py",
        "rollout/vllm_engine/weight_receiver.py",
        "rollout/plugin.py",
        "learner/weight_sync/sender.py",
    },
    "deepspeed": {
        "learner/deepspeed_engine.py",
        "learner/state/training_state.py",
        "learner/model/sequence_parallel.py",
    },
}
NOT_IN_CORE = {"ray", "vllm", "deepspeed", "transformers", "pebble"}
RAY_IN_CORE = "maxpo/runtime/ray_calls.py"
"""It imports ray inside its functions only."""


def imports(path: Path) -> set[str]:
    """First parts of everything that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


FILES = [path for package in PACKAGES for path in sorted(Path(package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    found = imports(path)
    assert found & set(PACKAGES) <= MAY_IMPORT[path.parts[0]]
    for library, allowed in HEAVY.items():
        assert library not in found or str(path) in allowed
    if path.parts[0] == "maxpo":
        assert found & NOT_IN_CORE == ({"ray"} if str(path) == RAY_IN_CORE else set())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_on_a_floor(package: str) -> None:
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in Path(package).rglob("*.py")]
    rooms = [room for floor in FLOORS[package] for room in floor]
    assert sorted(rooms) == sorted(set(map(room_of, modules)))


def test_no_deadline_reads_the_clock_of_the_wall() -> None:
    """That clock may jump. Only texts and logs have its time."""
    packages = ("maxpo", "rollout", "learner", "launch")
    files = [file for package in packages for file in Path(package).rglob("*.py")]
    reading = {
        str(file) for file in files if re.search(r"\btime\.time\(|datetime\.(now|today|utcnow)\(", file.read_text())
    }
    assert reading == {"maxpo/data/templates.py", "maxpo/tracking/run_log.py", "launch/run/watchdog.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_lead_to_a_lower_floor(package: str) -> None:
    level = {room: number for number, floor in enumerate(FLOORS[package]) for room in floor}
    upwards = {f"{a} -> {b}": file for (a, b), file in arrows(package).items() if level[a] <= level[b]}
    assert upwards == {}, "an import leads to the same floor or upwards; see tests/contracts/floors.py"


def test_importing_the_core_pulls_in_nothing_heavy() -> None:
    modules = [".".join(p.with_suffix("").parts) for p in FILES if p.parts[0] == "maxpo" and p.name != "__init__.py"]
    code = f"import sys; import {', '.join(modules)}; print({NOT_IN_CORE!r} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_the_command_answers_without_loading_torch() -> None:
    code = "import sys; import launch.cli; print({'torch', 'ray'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize("path", sorted(Path("configs/presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_loads(path: Path) -> None:
    given = []
    if not path.stem.startswith(("demo", "calculator")):
        given = ["model.path=configs/models/countdown-0.5m"]
    if not path.stem.startswith(("demo", "calculator", "smollm2")):
        rows = "configs/data/gsm8k_sample.jsonl"
        given += [f"data.train_file={rows}", f"data.eval_file={rows}"]
    assert load_config([path], given).config.run.name == path.stem


def test_the_rloo_demo_differs_by_k_alone() -> None:
    demo = load_config([Path("configs/presets/demo.yaml")], []).config
    rloo = load_config([Path("configs/presets/demo_rloo.yaml")], ["run.name=demo", "algorithm.k=4"]).config
    assert demo == rloo
    assert load_config([Path("configs/presets/demo_rloo.yaml")], []).config.algorithm.k == 1


def test_metrics_md_is_what_the_registry_says() -> None:
    assert Path("METRICS.md").read_text() == markdown()


def test_metric_names_are_matched_whole() -> None:
    examples = {"k": "8", "part": "format", "estimator": "dr_grpo", "verifier": "math"}
    examples |= {"n": "32", "figure": "maj@32", "source": "openai/gsm8k main", "name": "pass@8/low"}
    check_names([name.format(**examples) for name in METRICS])
    for wrong in ("reward/mean2/x/y", "time/step_s ", "xreward/mean", "eval/pass@8/mid", "eval/s/mean", "eval//greedy"):
        with pytest.raises(KeyError):
            check_names([wrong])


def test_the_fakes_refuse_what_the_real_ones_refuse() -> None:
    rollouts, learner = FakeRollouts(), FakeLearner()
    with pytest.raises(RuntimeError, match="generation refused"):
        rollouts.generate([], 2, "x")
    manifest = learner.publish(rollouts.receivers())
    assert isinstance(manifest, WeightManifest)
    assert rollouts.generate([], 2, "x") == []
