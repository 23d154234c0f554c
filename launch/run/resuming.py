"""Where a run goes on from, and what changed in its settings meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from launch.terminal.printing import say
from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import read_manifest, verify
from maxpo.checkpoints.remote import RemoteStore
from maxpo.config import Config
from maxpo.configure.problems import show
from maxpo.errors import CheckpointError
from maxpo.files import step_of

FIXED = ("run.seed", "data.task", "data.task_args", "data.train_size", "learner.lora")
"""Settings that must not change: the position in the data, the seeds of the samples and what is trained mean nothing
without them. That the rows of a file are the same is checked by their content."""


def find_checkpoint(config: Config, checkpoints: Checkpoints, console: Console) -> Path | None:
    """The checkpoint that `checkpoint.resume` asks for, fetched from `checkpoint.remote` where it is only there.

    None for a new run.

    Raises:
        CheckpointError: there is none that can be used, and starting anew is not what was asked for.
    """
    wanted = config.checkpoint.resume
    if wanted == "never":
        return None
    if wanted not in ("auto", "must"):
        verify(Path(wanted))
        return Path(wanted)
    before = checkpoints.steps()
    found, wrong = checkpoints.newest_good(fetch=True)
    if wrong and (wanted == "must" or found is None):
        raise CheckpointError(
            "\n  ".join(["a checkpoint is damaged:", *wrong])
            + (f"\nThe newest good one is {found}: name it with checkpoint.resume={found}" if found else "")
        )
    for line in wrong:
        say(console, f"damaged checkpoint left out: {line}")
    if found is None and wanted == "must":
        remote = f" nor has {config.checkpoint.remote}" if config.checkpoint.remote else ""
        raise CheckpointError(f"{checkpoints.folder.parent} has no checkpoint to go on from{remote}")
    if found is not None:
        if step_of(found.name) not in before:
            text = f"fetched {found.name} from {config.checkpoint.remote}"
            say(console, text)
        say(console, f"going on from {found}")
    return found


def remote_store(config: Config) -> RemoteStore | None:
    """Where the copies of this run's checkpoints are: below `checkpoint.remote`, under the run's name.

    Raises:
        InputError: the URL cannot be used.
    """
    url = config.checkpoint.remote
    return RemoteStore(f"{url.rstrip('/')}/{config.run.name}", config.checkpoint.remote_options) if url else None


def go_back_to(source: Path, checkpoints: Checkpoints, console: Console, *, named: bool) -> None:
    """Make `source` the newest checkpoint of its run: later ones are damaged, or the user must decide.

    Args:
        source: the checkpoint to go on from.
        checkpoints: of the run; nothing is done where `source` is of another one.
        console: where it is said.
        named: the user named it; otherwise it is the newest good one.

    Raises:
        CheckpointError: the user named one that has newer ones.
    """
    if checkpoints.folder.resolve() != source.resolve().parent:
        return
    step = read_manifest(source)["step"]
    if named and (newer := checkpoints.good_after(step)):
        raise CheckpointError(
            f"{source} is not the newest checkpoint of its run, there are steps {newer}: move them away, or give the "
            "run that begins there another run.name"
        )
    for moved in checkpoints.set_aside(newer_than=step):
        say(console, f"damaged checkpoint set aside: {moved}")


def describe_changes(checkpoint: Path, settings: str, console: Console) -> None:
    """Print which settings differ from those that the checkpoint was written with.

    Raises:
        CheckpointError: one of `FIXED` differs.
    """
    before, now = (_flat(text) for text in ((checkpoint / "config.yaml").read_text(encoding="utf-8"), settings))
    # What says where the run is, and whether it goes on, is no change of it.
    quiet = {"run.dir", "run.name", "run.overwrite", "checkpoint.resume"}
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    fixed = [key for key in changed if key in FIXED]
    if fixed:
        lines = [f"{key}: {show(before.get(key))} in the checkpoint, {show(now.get(key))} now" for key in fixed]
        raise CheckpointError("\n  ".join([f"{checkpoint} is of another run; these must not change:", *lines]))
    for key in changed:
        if key not in quiet:
            line = f"changed: {key}: {show(before.get(key))} -> {show(now.get(key))}"
            say(console, line)


def _flat(text: str) -> dict[str, Any]:
    flat = {f"{section}.{name}": value for section, own in yaml.safe_load(text).items() for name, value in own.items()}
    adapter = flat.get("learner.lora") or {"rank": 0}
    return flat | {"learner.lora": adapter if adapter["rank"] else None}
