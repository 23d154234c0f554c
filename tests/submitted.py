"""What the tests of submitted jobs share: two configurations, and files that hold what they should become.

After a change that is meant, `MAXPO_RENEW_GOLDEN=1 pytest tests/core/launch/test_slurm.py
tests/core/launch/test_kubernetes.py` writes the files below tests/golden anew; read the difference before it is
committed.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import yaml

from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.configure.writing import to_yaml

GOLDEN = Path(__file__).parent / "golden"

SMALL = {
    "run": {"name": "first", "steps": 3},
    "model": {"path": "model"},
    "data": {"task": "countdown"},
    "reward": {"verifier": "countdown"},
    "rollout": {"max_new_tokens": 64, "device": "cpu"},
    "learner": {"lr": 1e-6, "device": "cpu"},
    "checkpoint": {"stop_within_s": 60},
    "launch": {"time_limit_min": 30, "stop_before_s": 120, "max_attempts": 2, "cpus_per_node": 2},
}
"""One node without a GPU."""

LARGE = {
    **SMALL,
    "run": {"name": "Large_1", "steps": 1000, "dir": "runs dir"},
    "rollout": {"max_new_tokens": 4096, "device": "cuda", "workers": 4, "tensor_parallel_size": 4},
    "learner": {"lr": 1e-6, "device": "cuda", "ranks": 8, "token_budget": 16384},
    "checkpoint": {
        "remote": "s3://bucket/runs",
        "remote_options": {"key": "${oc.env:MAXPO_TEST_KEY}"},
    },
    "data": SMALL["data"] | {"chat": True, "system_prompt": 'it\'s\na "text"\nMAXPO_END_OF_CONFIG_YAML'},
    "cluster": {"nodes": 3, "gpus_per_node": 8, "interface": "ib0"},
    "ray": {"object_store_mib": 1024},
    "launch": {
        "cpus_per_node": 64,
        "memory_gib": 900,
        "setup": ["module load cuda", 'source "$HOME/env/bin/activate"'],
        "env": {"NCCL_DEBUG": "WARN", "NOTE": "it's $HOME; `x` $(y)"},
        "slurm_options": ["--partition=gpu", "--account=lab"],
        "k8s_secret": "s3-key",
        "k8s_shm_gib": 64,
        "k8s_user": 4000,
    },
}
"""Several nodes with GPUs, and values that a shell or YAML would like to read otherwise."""

SECRET = "hunter2"


def loaded(settings: dict[str, dict[str, object]], *overrides: str) -> LoadedConfig:
    """The configuration, as from a file; the model's folder and the secret are made up."""
    os.environ["MAXPO_TEST_KEY"] = SECRET
    file = Path("settings.yaml")
    file.write_text(yaml.safe_dump(settings))
    return load_config([file], overrides, files_here=False)


def check_golden(name: str, text: str, settings: LoadedConfig) -> None:
    """That the file holds the text, but for the settings in it, which other tests read back."""
    for indent in ("", "    "):
        text = text.replace(textwrap.indent(to_yaml(settings), indent), f"{indent}(all settings)\n")
    assert "(all settings)" in text
    file = GOLDEN / name
    if os.environ.get("MAXPO_RENEW_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.read_text() == text, f"{file} differs; see {__file__}"
