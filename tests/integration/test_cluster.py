"""Real Ray clusters: placement, a training over two hosts of which one is cut off, and runs as jobs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, running_cluster

SMALL = (
    *("learner.device=cpu", "rollout.device=cpu", "eval.at_start=false", "eval.prompts=32", "eval.samples=16"),
    *("algorithm.prompts_per_step=8", "data.train_size=100", "rollout.max_concurrent_sequences=64"),
    *("checkpoint.every=1", "learner.cpu_threads=1", "sync.timeout_s=20"),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as found:
        end = time.monotonic() + 60
        while found.run("maxpo", "doctor", "--address", found.address).returncode:
            assert time.monotonic() < end, found.log.read_text()
        yield found


def steps_of(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["step"] for line in lines if "train/loss" in line]


def wait_until(done: Callable[[], Any], run: subprocess.Popen[bytes], output: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert run.poll() is None and time.monotonic() < end, output.read_text()
        time.sleep(0.2)


def test_doctor_asks_every_node(cluster: Cluster, tmp_path: Path) -> None:
    words = (
        "maxpo",
        "doctor",
        "configs/presets/demo.yaml",
        f"ray.address={cluster.address}",
        f"run.dir={tmp_path}/runs",
    )
    model = f"model.path={Path('configs/models/countdown-0.5m').absolute()}"
    found = cluster.run(*words, model, "cluster.nodes=2")
    lines, ip = found.stdout.splitlines(), cluster.address.partition(":")[0]
    assert found.returncode == 1  # there is one node of two
    assert f"ok       Ray at {cluster.address}: connected" in lines
    assert [line for line in lines if line.startswith("error")] == [
        "error    cluster: 1 node; cluster.nodes = 2: start more of them (`ray start --address=...`)"
    ]
    (node,) = (line for line in lines if line[9:].startswith(f"node {ip}"))
    assert "the same versions as here" in node or "open files" in node
    assert "run.dir" not in node and list(tmp_path.iterdir()) == []
    wrong = replace(cluster, env=cluster.env | {"RAY_AUTH_TOKEN": "wrong"}).run(*words, model)
    assert wrong.returncode == 1
    assert [line for line in wrong.stdout.splitlines() if line.startswith("error")] == [
        f"error    Ray at {cluster.address}: the token was not accepted: use the one that the head was started with, "
        "and RAY_AUTH_MODE=token"
    ]
    for said in (found, wrong):
        assert cluster.env["RAY_AUTH_TOKEN"] not in said.stdout + said.stderr


def test_every_actor_gets_the_gpus_of_its_bundle(cluster: Cluster) -> None:
    probe = cluster.run("python", "-m", "tests.integration.room_probe", cluster.address)
    assert probe.returncode == 0, probe.stderr
    found = json.loads(probe.stdout.splitlines()[-1])
    shared = found["colocated"]
    assert "error" not in shared | found["disaggregated"], found
    assert sorted(gpu for gpus in shared["engines"] for gpu in gpus) == ["0", "1", "2", "3"]
    assert [gpu for (gpu,) in shared["ranks"]] == [gpu for gpus in shared["engines"] for gpu in gpus]
    apart = found["disaggregated"]
    assert sorted(gpu for gpus in apart["engines"] + apart["ranks"] for gpu in gpus) == ["0", "1", "2", "3"]
    ip = cluster.address.partition(":")[0]
    assert apart["where"] == f"{ip}: learner rank 0, learner rank 1, rollout worker 0"
    assert "no room for engines: 1 x (8 GPUs and 0.01 CPUs), each on one node" in found["too large"]["error"]
    assert f"The cluster has {ip}: 4 GPUs, 4 CPUs" in found["too large"]["error"]


def test_a_run_over_two_hosts_survives_the_loss_of_one(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.hosts is None:
        pytest.skip(cluster.why)
    a, b = cluster.hosts
    cluster.join()
    folder, output = tmp_path / "two", tmp_path / "output.log"
    run = cluster.start(
        *("maxpo", "train", "configs/presets/demo.yaml", f"run.dir={tmp_path}", "run.name=two", "run.steps=8", *SMALL),
        *(f"ray.address={cluster.address}", "cluster.nodes=2", "learner.ranks=2", "rollout.workers=2"),
        output=output,
    )
    wait_until(lambda: len(steps_of(folder)) >= 3, run, output)
    b.cut_off()
    code, said = run.wait(300), output.read_text()
    assert code == 0, said
    assert f"{a.address}: learner rank 0, rollout worker 0\n{b.address}: learner rank 1, rollout worker 1" in said
    assert "died while" in said and "going on from" in said
    assert f"{a.address}: learner rank 0, learner rank 1, rollout worker 0, rollout worker 1" in said
    assert steps_of(folder) == list(range(1, 9))


def test_a_job_is_followed_stopped_and_resumed(cluster: Cluster, tmp_path: Path) -> None:
    submit = ("maxpo", "submit", "ray", "--address", cluster.dashboard, "configs/presets/demo.yaml")
    settings = (f"run.dir={tmp_path}", "run.name=job", *SMALL)
    folder, output = tmp_path / "job", tmp_path / "output.log"
    run = cluster.start(*submit, *settings, "run.steps=300", output=output)
    wait_until(lambda: "step 2  reward" in output.read_text(), run, output)  # streamed, not at the end
    (job,) = [line.split()[1] for line in output.read_text().splitlines() if line.startswith("job ")]
    stop = cluster.run("ray", "job", "stop", "--no-wait", "--address", cluster.dashboard, job)
    assert stop.returncode == 0, stop.stderr
    code, said = run.wait(120), output.read_text()
    assert code == 75, said
    assert f"job {job}: STOPPED" in said and "SIGTERM: stopping after this step" in said
    last = steps_of(folder)[-1]
    assert f"saved at step {last}" in said and (folder / "checkpoints" / f"step_{last:06d}").is_dir()
    (line,) = [line for line in said.splitlines() if line.startswith("resume ")]
    again = line.split()[1:]  # as it is printed, but for its end
    assert again == [*submit[:5], submit[5], *settings, "run.steps=300", "checkpoint.resume=auto"]
    done = cluster.run(*again, f"run.steps={last + 1}", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps_of(folder) == list(range(1, last + 2)) and (folder / "policy" / "model.safetensors").is_file()
    assert f"{last + 1} steps; one step" in done.stdout and "SUCCEEDED" in done.stdout


def test_the_exit_code_of_a_job_and_a_wrong_token(cluster: Cluster, tmp_path: Path) -> None:
    submit = ("maxpo", "submit", "ray", "--address", cluster.dashboard, "configs/presets/demo.yaml")
    (tmp_path / "none").mkdir()  # a run folder that a run was begun in, so that the job refuses it
    (tmp_path / "none" / "metrics.jsonl").write_text('{"step": 1, "time": 0.0}\n')
    done = cluster.run(*submit, f"run.dir={tmp_path}", "run.name=none", "run.overwrite=false", *SMALL)
    assert (done.returncode, "none exists already" in done.stdout, "FAILED" in done.stdout) == (2, True, True)
    train = ("maxpo", "train", "configs/presets/demo.yaml", f"ray.address={cluster.address}")
    stranger = replace(cluster, env=cluster.env | {"RAY_AUTH_TOKEN": "wrong"})
    for words, address in ((submit, cluster.dashboard), (train, cluster.address)):
        wrong = stranger.run(*words, f"run.dir={tmp_path}")
        assert wrong.returncode == 2
        assert wrong.stderr == f"maxpo: the Ray cluster at {address} does not accept this token\n"
