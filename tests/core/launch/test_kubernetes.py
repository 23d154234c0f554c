"""`maxpo submit k8s`: the RayJob as text, against KubeRay's schema, and as it is handed to kubectl."""

from __future__ import annotations

import copy
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch.cli import main
from launch.submit.kubernetes import render
from maxpo.configure.loading import load_config
from maxpo.errors import InputError
from tests.submitted import GOLDEN, LARGE, SECRET, SMALL, check_golden, loaded

K8S = ["launch.k8s_image=registry.example.org/maxpo:1.0", "launch.k8s_claim=models"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documents(settings: dict[str, Any], *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    settings_map, job = yaml.safe_load_all(render(loaded(settings, *K8S, *overrides)))
    return settings_map, job


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", []))]


SCHEMA = yaml.safe_load((GOLDEN / "rayjob_schema.yaml").read_text())


@pytest.mark.parametrize(("name", "settings"), [("small", SMALL), ("large", LARGE)])
class TestBoth:
    def test_golden(self, name: str, settings: dict[str, Any]) -> None:
        given = loaded(settings, *K8S)
        check_golden(f"k8s_{name}.yaml", render(given), given)

    def test_it_is_what_kuberay_takes(self, name: str, settings: dict[str, Any]) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        jsonschema.validate(documents(settings)[1], SCHEMA)

    def test_the_settings_arrive_as_they_are(self, name: str, settings: dict[str, Any]) -> None:
        settings_map, job = documents(settings)
        (text,) = settings_map["data"].values()
        Path("config.yaml").write_text(text)
        assert load_config([Path("config.yaml")], [], files_here=False).config == loaded(settings, *K8S).config
        for pod in pods(job):
            (volume,) = [v for v in pod["volumes"] if "configMap" in v]
            assert volume["configMap"]["name"] == settings_map["metadata"]["name"]
            assert {"name": volume["name"], "mountPath": "/etc/maxpo", "readOnly": True} in pod["containers"][0][
                "volumeMounts"
            ]
        assert " /etc/maxpo/config.yaml " in job["spec"]["entrypoint"]

    def test_every_volume_is_mounted_and_every_mount_has_a_volume(self, name: str, settings: dict[str, Any]) -> None:
        for pod in pods(documents(settings)[1]):
            mounts = [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]
            assert sorted(mounts) == sorted(volume["name"] for volume in pod["volumes"])


def set_in(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one value of a job; numbers in the path are places in a list."""

    def change(job: dict[str, Any]) -> None:
        *way, last = path.split(".")
        at: Any = job
        for step in way:
            at = at[int(step) if isinstance(at, list) else step]
        at[last] = value

    return change


POD = "spec.rayClusterSpec.headGroupSpec.template.spec"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("metadata.name", "Large_1"), "does not match"),
        (set_in("spec.backofLimit", 3), "'backofLimit' was unexpected"),
        (set_in("spec.backoffLimit", "3"), "'3' is not of type 'integer'"),
        (set_in("spec.activeDeadlineSeconds", 0), "less than the minimum"),
        (set_in("spec.submissionMode", "HttpMode"), "is not one of"),
        (set_in("spec.rayClusterSpec.authOptions.mode", "on"), "is not one of"),
        (lambda job: job["spec"]["rayClusterSpec"].pop("rayVersion"), "'rayVersion' is a dependency"),
        (lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"), "'maxReplicas' is a req"),
        (set_in("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 2), "2 is not of type 'string'"),
        (set_in(f"{POD}.containers.0.resources.limits.memory", "900 GiB"), "does not match"),
        (set_in(f"{POD}.containers.0.env", {"A": "x"}), "is not of type 'array'"),
        (set_in(f"{POD}.volumes.2.emptyDir.medium", "memory"), "is not one of"),
        (set_in(f"{POD}.securityContext.privileged", True), "'privileged' was unexpected"),
    ],
)
def test_the_schema_finds_mistakes(change: Callable[[dict[str, Any]], None], message: str) -> None:
    job = copy.deepcopy(documents(LARGE)[1])
    change(job)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(job, SCHEMA)


def test_one_node_without_gpus() -> None:
    job = documents(SMALL)[1]
    assert "workerGroupSpecs" not in job["spec"]["rayClusterSpec"]
    (pod,) = pods(job)
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}
    assert "envFrom" not in container
    assert job["spec"]["backoffLimit"] == 1


def test_several_nodes_with_gpus() -> None:
    job = documents(LARGE)[1]
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (2, 2, 2)
    assert len(pods(job)) == 2
    for pod in pods(job):
        (container,) = pod["containers"]
        resources = {"cpu": "64", "memory": "900Gi", "nvidia.com/gpu": "8"}
        assert container["resources"] == {"limits": resources, "requests": resources}
        assert container["envFrom"] == [{"secretRef": {"name": "s3-key"}}]
        assert {"name": "NOTE", "value": "it's $HOME; `x` $$(y)"} in container["env"]
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}} in pod["volumes"]


def test_safe_by_default() -> None:
    job = documents(LARGE)[1]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert (cluster["headGroupSpec"]["serviceType"], cluster["headGroupSpec"]["enableIngress"]) == ("ClusterIP", False)
    for pod in pods(job):
        assert pod["automountServiceAccountToken"] is False
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 4000)
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        # KubeRay sets them; ours would win over its own.
        assert not [v for v in pod["containers"][0]["env"] if v["name"].startswith("RAY_AUTH")]


def test_no_secret_is_in_it() -> None:
    job = loaded(LARGE, *K8S)
    assert job.config.checkpoint.remote_options == {"key": SECRET}
    assert SECRET not in render(job)
    assert "${oc.env:MAXPO_TEST_KEY}" in render(job)


def test_a_stop_leaves_time_to_save() -> None:
    job = documents(SMALL)[1]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
    assert pods(job)[0]["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize("how", ["limit", "stop", "end"])
def test_the_entrypoint_tells_the_driver_to_save_and_keeps_its_exit_code(how: str, here: Path) -> None:
    entrypoint = documents(SMALL, f"launch.k8s_mount={here}")[1]["spec"]["entrypoint"]
    assert " 1680s " in entrypoint  # 30 minutes less 120 s
    (here / "maxpo").write_text(
        "#!/bin/bash\necho $PWD $* >calls\n"
        'for name in USR1 TERM; do trap "echo $name >>calls; exit 75" "$name"; done\n'
        f"{'exit 3' if how == 'end' else 'while true; do sleep 0.05; done'}\n"
    )
    (here / "maxpo").chmod(0o755)
    if how == "limit":
        entrypoint = entrypoint.replace(" 1680s ", " 0.5s ")
    process = subprocess.Popen(
        ["sh", "-c", entrypoint], cwd="/", env={"PATH": f"{here}:/usr/bin:/bin"}, start_new_session=True
    )
    if how == "stop":
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
    code = process.wait(30)
    first, *signals = (here / "calls").read_text().splitlines()
    assert first == f"{here} train /etc/maxpo/config.yaml ray.address=auto checkpoint.resume=auto"
    assert (code, signals) == {"limit": (75, ["USR1"]), "stop": (75, ["TERM"]), "end": (3, [])}[how]


def test_the_deadline_is_beyond_the_time_limit() -> None:
    # KubeRay does not start a job again whose deadline has passed.
    assert documents(SMALL)[1]["spec"]["activeDeadlineSeconds"] >= 30 * 60 + 3600


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.name=007"], r"run\.name = '007' cannot be a name in Kubernetes: use at most 47"),
        (["run.name=first-"], r"run\.name = 'first-' cannot"),
        (["run.name=erste_größe"], r"run\.name = 'erste_größe' cannot"),
        ([f"run.name={'a' * 48}"], r"cannot be a name in Kubernetes"),
        (["launch.k8s_image=null"], r"launch\.k8s_image is not set: it must name the container image"),
        (["launch.k8s_claim=null"], r"launch\.k8s_claim is not set: it must name the PersistentVolumeClaim"),
        (["learner.device=cuda"], r"cluster\.gpus_per_node is not set, but learner\.device is cuda"),
        (["launch.memory_gib=16"], r"launch\.memory_gib = 16 must be more than launch\.k8s_shm_gib = 16"),
        (["ray.object_store_mib=16384"], r"ray\.object_store_mib = 16384 does not fit in launch\.k8s_shm_gib = 16"),
        (["checkpoint.resume=/a/b"], r"checkpoint\.resume = /a/b: .* set it to auto"),
    ],
)
def test_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(loaded(SMALL, *K8S, *overrides))


def test_names_are_made_fit() -> None:
    settings_map, job = documents(SMALL, "run.name=Max_K.4")
    assert (job["metadata"]["name"], settings_map["metadata"]["name"]) == ("max-k-4", "max-k-4-config")


class TestCommand:
    @pytest.fixture(autouse=True)
    def settings(self) -> None:
        loaded(SMALL)  # writes settings.yaml; its model is not on this machine

    def kubectl(self, here: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
        (here / "bin").mkdir()
        (here / "bin/kubectl").write_text(f'#!/bin/sh\necho "$*" >{here}/calls\ncat >{here}/stdin\n{answer}\n')
        (here / "bin/kubectl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{here}/bin:/usr/bin:/bin")

    def test_dry_run_prints_the_yaml_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["submit", "k8s", "settings.yaml", "--dry-run", *K8S]) == 0
        assert capsys.readouterr().out == render(loaded(SMALL, *K8S))

    def test_without_kubectl(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert main(["submit", "k8s", "settings.yaml", *K8S]) == 2
        error = capsys.readouterr().err
        assert error.startswith("maxpo: kubectl is not on PATH") and "--dry-run prints" in error

    def test_the_job_is_handed_over(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.kubectl(here, monkeypatch, "exit 0")
        assert main(["submit", "k8s", "settings.yaml", *K8S]) == 0
        assert (here / "calls").read_text() == "create -f -\n"
        assert (here / "stdin").read_text() == render(loaded(SMALL, *K8S))
        said = capsys.readouterr().out
        assert "run folder      /maxpo/runs/first, on the volume of models\n" in said
        stop = next(line for line in said.splitlines() if line.startswith("save and stop"))
        assert shlex.split(stop)  # a shell can read it
        assert "ray job stop" in stop and "{.status.jobId}" in stop
        assert "kubectl delete rayjob/first configmap/first-config" in said

    def test_the_cluster_refuses(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.kubectl(here, monkeypatch, "echo 'rayjobs.ray.io \"first\" already exists' >&2; exit 1")
        assert main(["submit", "k8s", "settings.yaml", *K8S]) == 1
        error = capsys.readouterr().err
        assert 'kubectl create failed with exit code 1: rayjobs.ray.io "first" already exists' in error
        assert "kubectl delete rayjob/first configmap/first-config" in error
