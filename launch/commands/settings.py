"""Settings on the command line: a FILE.yaml with overrides, or those of a run folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from maxpo.configure.loading import LoadedConfig, load_config
from maxpo.errors import InputError

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Type of the object to which a command adds its parser; argparse has no public name for this type."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `FILE.yaml [key=value ...]`."""
    parser.add_argument("file", type=Path, metavar="FILE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override settings of the file")


def override(key: str, path: object) -> str:
    """Return the override `key=value` that sets a key to a path, whatever characters it has."""
    return f"{key}={json.dumps(str(path).replace('${', chr(92) + '${'), ensure_ascii=False)}"


def settings_of_run(run: Path, overrides: Sequence[str]) -> LoadedConfig:
    """Return the settings of a run folder, changed so that the run continues from its newest checkpoint.

    Raises:
        InputError: The folder has no config.yaml.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError(f"{run} is not a run folder: it has no config.yaml")
    folder = run.resolve()
    here = [override("run.dir", folder.parent), override("run.name", folder.name)]
    return load_config([file], ["checkpoint.resume=must", *overrides, *here], earlier_run=True)
