"""Settings of the sections `run`, `model`, `tracking` and `checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(kw_only=True)
class RunConfig:
    """Name, place, length and seed of a run."""

    name: str = MISSING
    """Name of the run; its files go to `dir/name`."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of everything random: data order, sampling, evaluation."""
    steps: int = MISSING
    """Training steps. One step samples `algorithm.prompts_per_step` groups."""
    overwrite: bool = False
    """Replace an existing run folder of the same name; otherwise that is an error."""
    stall_timeout_s: float = 3600.0
    """Seconds without progress (a group, a stage of a step) after which the run stops and says who waits; 0: never."""


@dataclass(kw_only=True)
class ModelConfig:
    """The model to start from."""

    path: str = MISSING
    """Folder of a Hugging Face causal language model (config.json, safetensors, tokenizer)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. Off: such a model is refused."""


@dataclass(kw_only=True)
class TrackingConfig:
    """What is written down besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard files, fed from metrics.jsonl."""
    save_rollouts: int = 1
    """Groups of each step whose completions are written to `rollouts/`; 0: none."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """What is saved so that a run can go on after it was stopped."""

    every: int = 50
    """Save every this many steps, after the last step and when the run is stopped; 0: never. On disk a checkpoint has
    12 bytes for each parameter that is trained."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Also keep the checkpoints whose step is a multiple of this; 0: none."""
    keep_best: str | None = None
    """Also keep the checkpoint with the highest value of this metric, for example `eval/pass@8`; null: none."""
    asynchronous: bool = False
    """Write the files while training goes on, from a copy in host memory: 12 bytes for each of these."""
    policy: bool = False
    """Put the policy as a Hugging Face folder into each checkpoint, too."""
    remote: str | None = None
    """URL that checkpoints are copied to and fetched from, such as s3://bucket/prefix, gs://... or file:///folder; the
    drivers are maxpo[s3] and maxpo[gcs]. A copy that fails is told and counted, and the run goes on. null: none."""
    remote_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of `remote`'s fsspec driver, such as endpoint_url; secrets only as ${oc.env:NAME}."""
    stop_within_s: float = 300.0
    """Seconds in which a run that is told to stop (Ctrl-C, SIGTERM, SIGUSR1) must have ended its step and saved; after
    that it ends at once, and what came after the last checkpoint is lost."""
    resume: str = "never"
    """auto: go on from the newest good checkpoint of the run folder, or start anew where there is none; must: go on, or
    fail; never: start anew; or the folder of a checkpoint."""
