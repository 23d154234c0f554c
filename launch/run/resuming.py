"""The checkpoint that a run continues from, and changes of its settings since then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from launch.terminal.printing import say
from learner.model.lora import add_adapter
from learner.model.parameters import trained_parameters
from learner.state.files import check_state
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import read_manifest, verify
from maxpo.checkpoints.remote import RemoteStore
from maxpo.config import Config
from maxpo.configure.loading import LoadedConfig, replaced
from maxpo.configure.problems import show
from maxpo.data.templates import today
from maxpo.errors import CheckpointError
from maxpo.files import step_of

FIXED = ("run.seed", "data.task", "data.task_args", "data.train_size", "learner.lora")
"""Settings that must not change. They give a meaning to the position in the data, to the seeds of the samples and to
the trained parameters. The rows of files are compared by their content instead."""


def with_date(loaded: LoadedConfig) -> LoadedConfig:
    """Return the settings with `data.date`: that of the run to continue, or else today's.

    Raises:
        CheckpointError: the settings of the run cannot be read.
    """
    config = loaded.config
    if config.data.date is not None:
        return loaded
    wanted = config.checkpoint.resume
    source = Path(config.run.dir) / config.run.name if wanted in ("auto", "must") else Path(wanted)
    day = None
    if wanted != "never" and (file := source / "config.yaml").is_file():
        try:
            day = yaml.safe_load(file.read_text(encoding="utf-8"))["data"].get("date")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise CheckpointError(f"{file} does not hold the settings of a run: {error}") from error
    day = day or today()
    return replaced(loaded, {"data.date": day})


def find_checkpoint(config: Config, checkpoints: Checkpoints, console: Console) -> Path | None:
    """Return the checkpoint that `checkpoint.resume` asks for, or None for a new run.

    A checkpoint that exists in `checkpoint.remote` only is fetched.

    Raises:
        CheckpointError: no checkpoint can be used, and the settings do not allow a new run instead.
    """
    wanted = config.checkpoint.resume
    if wanted == "never":
        return None
    if wanted not in ("auto", "must"):
        verify(Path(wanted))
        return Path(wanted)
    before = checkpoints.steps()
    newest, wrong = checkpoints.newest_good(fetch=True)
    if wrong and (wanted == "must" or newest is None):
        raise CheckpointError(
            "\n  ".join(["a checkpoint is damaged:", *wrong])
            + (f"\nThe newest good one is {newest}: name it with checkpoint.resume={newest}" if newest else "")
        )
    for line in wrong:
        say(console, f"damaged checkpoint left out: {line}")
    if newest is None and wanted == "must":
        remote = f" nor has {config.checkpoint.remote}" if config.checkpoint.remote else ""
        raise CheckpointError(f"{checkpoints.folder.parent} has no checkpoint to go on from{remote}")
    if newest is not None:
        if step_of(newest.name) not in before:
            say(console, f"fetched {newest.name} from {config.checkpoint.remote}")
        say(console, f"going on from {newest}")
    return newest


def check_learner_state(config: Config, checkpoint: Path) -> None:
    """Check that the learner's files in a checkpoint are those of the model, by their headers.

    Raises:
        CheckpointError: see `learner.state.files.check_state`.
    """
    path, trust = config.model.path, config.model.trust_remote_code
    shape = AutoConfig.from_pretrained(path, trust_remote_code=trust, local_files_only=True)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(shape, trust_remote_code=trust)
        if config.learner.lora.rank:
            add_adapter(lm, config.learner.lora, seed=0)
    check_state(checkpoint / "learner", {name: tuple(p.shape) for name, p in trained_parameters(lm).items()})


def remote_store(config: Config) -> RemoteStore | None:
    """Return the store of the run's remote checkpoints, `checkpoint.remote`/`run.name`, or None without one.

    Raises:
        InputError: the URL cannot be used.
    """
    url = config.checkpoint.remote
    return RemoteStore(f"{url.rstrip('/')}/{config.run.name}", config.checkpoint.remote_options) if url else None


def go_back_to(source: Path, checkpoints: Checkpoints, console: Console, *, named: bool) -> None:
    """Make `source` the newest checkpoint of its run. Later damaged checkpoints are set aside.

    Args:
        source: the checkpoint to continue from.
        checkpoints: those of the run. Nothing happens if `source` belongs to another run.
        console: gets a line for each checkpoint set aside.
        named: True if the user named `source`, False if it is the newest good checkpoint.

    Raises:
        CheckpointError: the run has good checkpoints newer than the one that the user named.
    """
    if not checkpoints.has(source):
        return
    step = read_manifest(source)["step"]
    if named and (newer := checkpoints.good_after(step)):
        raise CheckpointError(
            f"{source} is not the newest checkpoint of its run, which also has those of steps {newer}: move them away, "
            "or give the run that continues from here another run.name"
        )
    for moved in checkpoints.set_aside(newer_than=step):
        say(console, f"damaged checkpoint set aside: {moved}")


def describe_changes(checkpoint: Path, settings: str, console: Console) -> None:
    """Print the settings that differ from those in the checkpoint.

    Raises:
        CheckpointError: a setting of `FIXED` differs, or the settings of the checkpoint cannot be read.
    """
    before, now = _settings_in(checkpoint), _flat(settings)
    # The location of the run, and the order to continue, do not change the run itself.
    quiet = {"run.dir", "run.name", "run.overwrite", "checkpoint.resume"}
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    fixed = [key for key in changed if key in FIXED]
    if fixed:
        lines = [f"{key}: {show(before.get(key))} in the checkpoint, {show(now.get(key))} now" for key in fixed]
        raise CheckpointError(
            "\n  ".join([f"{checkpoint} belongs to another run; these settings must not change:", *lines])
        )
    for key in changed:
        if key not in quiet:
            line = f"changed: {key}: {show(before.get(key))} -> {show(now.get(key))}"
            say(console, line)


def _settings_in(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / "config.yaml"
    try:
        return _flat(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} does not hold the settings of a run: {error}") from error


def _flat(text: str) -> dict[str, Any]:
    """Return the settings of a YAML file by dotted key."""
    flat = {f"{section}.{name}": value for section, own in yaml.safe_load(text).items() for name, value in own.items()}
    adapter = flat.get("learner.lora") or {"rank": 0}
    return flat | {"learner.lora": adapter if adapter["rank"] else None}
