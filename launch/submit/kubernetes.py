"""`maxpo submit k8s`: a KubeRay RayJob, and the ConfigMap with its settings."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import PurePosixPath

import yaml
from rich.console import Console

from launch.cluster.ray_environment import EVERY_CLUSTER
from launch.submit.job import RESUME, check_job, need_program
from launch.terminal.printing import say
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError, RunError

RAY_VERSION = "2.60.0"
"""Ray version in the RayJob. KubeRay allows token authentication from 2.52 on, and uses the number for nothing else."""
LONGEST_NAME = 47
"""KubeRay's limit for names of jobs, so that the names of the objects that it creates stay valid."""
SETTINGS = "/etc/maxpo"
TTL_S = 300
"""Seconds that a finished job keeps its cluster and the nodes, so that its output can be read."""
PENDING_S = 86400
"""Seconds allowed for the wait for free nodes, which counts in KubeRay's deadline.

No attempt follows after the deadline. It only ends jobs that hang."""


def render(loaded: LoadedConfig) -> str:
    """Return the ConfigMap and the RayJob of a run, as YAML.

    Raises:
        InputError: a setting is missing or cannot be part of the job.
    """
    config = loaded.config
    check_job(loaded)
    name = _name(config.run.name)
    documents = [_settings(name, to_yaml(loaded)), _job(name, config)]
    return yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, explicit_start=True, width=120)


class _Readable(yaml.SafeDumper):
    """YAML writer without aliases, with text of several lines in block style."""

    def ignore_aliases(self, data: object) -> bool:
        """Return True, so that a value that appears twice is written twice."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write text, in block style if it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Readable.add_representer(str, _Readable.represent_str)


def _name(run: str) -> str:
    """Return the name of a run as a DNS label, which Kubernetes demands.

    Raises:
        InputError: the name has other characters, or is too long.
    """
    name = re.sub(r"[._ ]", "-", run.lower())
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) is None or len(name) > LONGEST_NAME:
        raise InputError(
            f"run.name = {run!r} cannot be a name in Kubernetes: use at most {LONGEST_NAME} letters, digits and -._, "
            "with a letter first and no sign at the end"
        )
    return name


def _settings(name: str, text: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-config", "labels": _labels(name)},
        "data": {"config.yaml": text},
    }


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "maxpo", "app.kubernetes.io/instance": name}


def _job(name: str, config: Config) -> dict[str, object]:
    launch, workers = config.launch, config.cluster.nodes - 1
    limit_s = 60 * launch.time_limit_min
    grace_s = launch.stop_before_s
    # Like `sbatch --signal`: before the limit, a signal asks the driver to save. The exit code of the driver is kept.
    command = ["timeout", "--preserve-status", "--signal=USR1", f"--kill-after={grace_s}s", f"{limit_s - grace_s}s"]
    command += ["maxpo", "train", f"{SETTINGS}/config.yaml", "ray.address=auto", RESUME]
    start = {"object-store-memory": str(config.ray.object_store_mib << 20)}
    group = {"rayStartParams": start, "template": _pod(name, config)}
    cluster: dict[str, object] = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {"serviceType": "ClusterIP", "enableIngress": False, **group},
    }
    if workers:
        sizes = {"replicas": workers, "minReplicas": workers, "maxReplicas": workers}
        cluster["workerGroupSpecs"] = [{"groupName": "workers", **sizes, **group}]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            # In K8sJobMode, a broken stream of the log can end the job.
            "submissionMode": "HTTPMode",
            "entrypoint": f"cd {shlex.quote(launch.k8s_mount)} && exec {shlex.join(command)}",
            # The default of Ray is to kill a stopped job after 3 s.
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(grace_s)}}),
            "backoffLimit": launch.max_attempts - 1,
            "activeDeadlineSeconds": limit_s + PENDING_S,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": TTL_S,
            "rayClusterSpec": cluster,
        },
    }


def _pod(name: str, config: Config) -> dict[str, object]:
    """Return the pod of a node, the same for the head and the workers.

    Raises:
        InputError: a setting is missing, or too much memory is asked for.
    """
    _check_pod(config)
    launch = config.launch
    return {
        "metadata": {"labels": _labels(name)},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": launch.stop_before_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": launch.k8s_user,
                "runAsGroup": launch.k8s_user,
                "fsGroup": launch.k8s_user,
                # Otherwise the kubelet goes through every file of a large volume at each start.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(config)],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": launch.k8s_claim}},
                {"name": "settings", "configMap": {"name": f"{name}-config"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{launch.k8s_shm_gib}Gi"}},
            ],
        },
    }


def _check_pod(config: Config) -> None:
    """Raise unless image and volume are named, and the object store fits into the shared memory of the pod."""
    launch = config.launch
    for key, value, what in (
        ("k8s_image", launch.k8s_image, "the container image to run, such as registry.example.org/maxpo:1.0"),
        ("k8s_claim", launch.k8s_claim, "the PersistentVolumeClaim with the model, the data and the run folder"),
    ):
        if value is None:
            raise InputError(f"launch.{key} is not set: it must name {what}")
    if launch.memory_gib is not None and launch.memory_gib <= launch.k8s_shm_gib:
        raise InputError(
            f"launch.memory_gib = {launch.memory_gib} must be more than launch.k8s_shm_gib = "
            f"{launch.k8s_shm_gib}, which is part of it"
        )
    if config.ray.object_store_mib >= launch.k8s_shm_gib << 10:
        raise InputError(
            f"ray.object_store_mib = {config.ray.object_store_mib} does not fit in launch.k8s_shm_gib = "
            f"{launch.k8s_shm_gib}: it must be less"
        )


def _container(config: Config) -> dict[str, object]:
    launch, gpus = config.launch, config.cluster.gpus_per_node
    resources = {
        "cpu": str(launch.cpus_per_node),
        **({} if launch.memory_gib is None else {"memory": f"{launch.memory_gib}Gi"}),
        **({} if gpus is None else {"nvidia.com/gpu": str(gpus)}),
    }
    # KubeRay itself adds the variables of the token and of RAY_AUTH_MODE.
    variables = {key: value for key, value in EVERY_CLUSTER.items() if key != "RAY_AUTH_MODE"} | launch.env
    return {
        "name": "ray",
        "image": launch.k8s_image,
        # Kubernetes would replace $(NAME) by the value of another variable.
        "env": [{"name": key, "value": str(value).replace("$(", "$$(")} for key, value in variables.items()],
        **({} if launch.k8s_secret is None else {"envFrom": [{"secretRef": {"name": launch.k8s_secret}}]}),
        "resources": {"limits": resources, "requests": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "data", "mountPath": launch.k8s_mount},
            {"name": "settings", "mountPath": SETTINGS, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def submit(loaded: LoadedConfig, console: Console, *, dry_run: bool) -> int:
    """Submit the job to KubeRay, in the namespace that kubectl uses. Return the exit code.

    Args:
        loaded: a checked configuration.
        console: gets the name of the job and the commands to follow and stop it.
        dry_run: print the YAML, submit nothing.

    Raises:
        InputError: kubectl is not installed, or a setting is missing.
        RunError: the cluster refuses the job.
    """
    manifest = render(loaded)
    if dry_run:
        console.out(manifest, highlight=False, end="")
        return 0
    kubectl = need_program("kubectl")
    name = _name(loaded.config.run.name)
    # Not `apply`, since a job of the same name may be running.
    done = subprocess.run([kubectl, "create", "-f", "-"], input=manifest, capture_output=True, text=True, check=False)
    remove = f"kubectl delete rayjob/{name} configmap/{name}-config"
    if done.returncode:
        raise RunError(
            f"kubectl create failed with exit code {done.returncode}: {done.stderr.strip()}\n"
            f"Remove what is left of this job, or of an earlier one with the same name, with: {remove}"
        )
    launch, run = loaded.config.launch, loaded.config.run
    head = f"$(kubectl get pod -o name -l ray.io/node-type=head,app.kubernetes.io/instance={name})"
    job = f"$(kubectl get rayjob/{name} -o jsonpath='{{.status.jobId}}')"
    text = f"""job             rayjob/{name}
run folder      {PurePosixPath(launch.k8s_mount) / run.dir / run.name}, on the volume of {launch.k8s_claim}
watch           kubectl get rayjob/{name} --watch
save and stop   kubectl exec {head} -- ray job stop --address http://127.0.0.1:8265 {job}
remove          {remove}"""
    say(console, text)
    return 0
