"""Settings of the sections `run`, `model`, `tracking` and `checkpoint`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from omegaconf import MISSING

from maxpo.config.ranges import COUNT, COUNT_OR_NONE, SECONDS, Arguments, Must, between

LONGEST_NAME = 200
"""Largest number of bytes of `run.name`. File systems take 255, and files beside the folder have longer names."""


def is_folder_name(name: str) -> bool:
    """Return True if the name is that of a folder and not a path. `run.overwrite` may delete the folder."""
    plain = name.isprintable() and len(name.encode()) <= LONGEST_NAME
    return plain and name.strip() not in ("", ".", "..") and not set("/\\") & set(name)


@dataclass(kw_only=True)
class RunConfig:
    """Name, folder, length and seed of a run."""

    name: Annotated[
        str,
        Must(
            is_folder_name,
            f"Must be a plain folder name, no slash, no control characters, at most {LONGEST_NAME} bytes.",
        ),
    ] = MISSING
    """Name of the run. Its files are in the folder `dir/name`."""
    dir: str = "runs"
    """Folder that holds the run folders."""
    seed: Annotated[int, Must(lambda v: 0 <= v < 2**32, "Must be at least 0 and below 2**32.")] = 0
    """Seed of all randomness: data order, sampling, evaluation."""
    steps: Annotated[int, COUNT] = MISSING
    """Training steps. One step samples `algorithm.prompts_per_step` groups."""
    overwrite: bool = False
    """Replace an existing run folder of the same name. false: an existing folder is an error."""
    start_timeout_s: Annotated[float, SECONDS] = 600.0
    """Timeout of the start of an engine, and of the start of the learner, seconds."""
    stall_timeout_s: Annotated[float, between(0, 10**7)] = 3600.0
    """Seconds without progress (a group, a stage of a step) after which the run stops and names what it waits for. 0:
    never."""


@dataclass(kw_only=True)
class ModelConfig:
    """The model at the start."""

    path: str = MISSING
    """Folder of a Hugging Face causal language model (config.json, safetensors, tokenizer)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. false: such a model is refused."""
    self_test: Literal["auto", "full", "off"] = "auto"
    """Test before the start that the learner's log-probabilities in a batch are those of each sequence alone. auto: on
    the loaded weights, or above 300 million parameters on a random copy with few layers. full: always on the loaded
    weights. off: no test, and rows are packed whatever the model."""


@dataclass(kw_only=True)
class TrackingConfig:
    """Records besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard files from metrics.jsonl."""
    save_rollouts: Annotated[int, COUNT_OR_NONE] = 1
    """Number of groups of each step whose completions are written to `rollouts/`. 0: none."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """Checkpoints, from which a stopped run resumes."""

    every: Annotated[int, COUNT_OR_NONE] = 50
    """Number of steps between two checkpoints. A checkpoint is also saved after the last step and when the run is
    stopped. 0: never. A checkpoint takes 12 bytes on disk for each trained parameter."""
    keep_last: Annotated[int, COUNT] = 2
    """Number of newest checkpoints to keep."""
    keep_every: Annotated[int, COUNT_OR_NONE] = 0
    """Also keep the checkpoints whose step is a multiple of this number. 0: none."""
    keep_best: str | None = None
    """Also keep the checkpoint with the highest value of this metric, for example `eval/pass@8`. null: none."""
    asynchronous: bool = False
    """Write the files while training goes on, from a copy in host memory: 12 bytes for each trained parameter."""
    policy: bool = False
    """Also write the policy as a Hugging Face folder into each checkpoint."""
    remote: Annotated[
        str | None, Must(lambda v: "://" in v, "Must be a URL, such as s3://bucket/prefix or file:///folder.")
    ] = None
    """URL that checkpoints are copied to and fetched from, such as s3://bucket/prefix, gs://... or file:///folder. The
    drivers are maxpo[s3] and maxpo[gcs]. A failed copy is reported and counted, and the run goes on. null: none."""
    remote_options: Arguments = field(default_factory=Arguments)
    """Options of `remote`'s fsspec driver, such as endpoint_url. Write secrets only as ${oc.env:NAME}."""
    stop_within_s: Annotated[float, SECONDS] = 300.0
    """Seconds in which a run that gets a signal to stop (Ctrl-C, SIGTERM, SIGUSR1) must end its step and save. After
    that the run ends at once, and progress since the last checkpoint is lost."""
    resume: str = "never"
    """Start of the run. auto: resume from the newest good checkpoint of the run folder, or start anew if there is none.
    must: resume, or fail. never: start anew. A folder: resume from this checkpoint."""
