"""Files that travel with a job of `maxpo submit ray`: the code, the settings, and the files of relative paths."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

import maxpo
from maxpo.configure.loading import LoadedConfig
from maxpo.configure.rules.data import local_sources
from maxpo.configure.writing import to_yaml
from maxpo.errors import InputError
from maxpo.plugins import file_of
from maxpo.rewards.registry import names_in_use

PACKAGES = ("maxpo", "rollout", "learner", "launch")
PATHS = ("model.path", "data.train_file", "data.eval_file", "learner.deepspeed")
LIMIT_MIB = 100
"""Largest size of a file or folder, since Ray keeps all files of a job in the memory of the head."""


@contextmanager
def packed(loaded: LoadedConfig) -> Iterator[tuple[Path, list[str]]]:
    """Make a folder with the code, the settings and the files of relative paths.

    Yields:
        The folder, and the names of its contents for the user.

    Raises:
        InputError: a relative path does not exist, or leads out of the current folder.
    """
    config, sent = loaded.config, [f"maxpo {maxpo.__version__}", "config.yaml"]
    with tempfile.TemporaryDirectory(prefix="maxpo-submit-") as made:
        folder = Path(made)
        for package in PACKAGES:
            source = Path(__file__).resolve().parents[2] / package
            shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        _copy_metadata(folder)
        tree = loaded.tree.copy()
        OmegaConf.update(tree, "ray.address", "auto")
        (folder / "config.yaml").write_text(to_yaml(replace(loaded, tree=tree)), encoding="utf-8")
        for key in PATHS:
            section, name = key.split(".")
            path = getattr(getattr(config, section), name)
            if path is not None and not Path(path).is_absolute():
                _copy(Path(path), folder, f"{key} = {path}")
                sent.append(path)
        for key, entries in (("data.train", config.data.train), ("data.eval", config.data.eval)):
            for source in local_sources(entries):
                if not Path(source).is_absolute():
                    _copy(Path(source), folder, f"{key}: {source}")
                    sent.append(source)
        algorithm = config.algorithm
        named = {*names_in_use(config.reward), algorithm.advantage, algorithm.loss, *algorithm.shadow}
        named |= {algorithm.mix_with or "", config.reward.group or ""}
        for name in sorted(name for name in named if ":" in name):
            own = file_of(name) or _own_module(name.partition(":")[0].partition(".")[0])
            if own and not own.is_absolute() and str(own) not in sent:
                _copy(own, folder, f"function {name}")
                sent.append(str(own))
        yield folder, sent


def _copy(source: Path, folder: Path, what: str) -> None:
    here = Path.cwd().resolve()
    files = [source, *source.rglob("*")] if source.is_dir() else [source]
    if not source.exists() or not all(here in file.resolve().parents for file in files):
        raise InputError(
            f"{what}: relative paths travel with the job, so they must be inside {here}, with all that they link to; "
            "files of the cluster need absolute paths"
        )
    size = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
    if size > LIMIT_MIB:
        raise InputError(
            f"{what} has {size:.0f} MiB; {LIMIT_MIB} MiB may travel with a job: put it on storage that all "
            "nodes see, and give its absolute path"
        )
    target = folder / source
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _own_module(name: str) -> Path | None:
    """Return the file or folder of a module in the current folder, or None if the module is from elsewhere."""
    for candidate in (Path(name), Path(f"{name}.py")):
        if candidate.exists():
            return candidate
    return None


def _copy_metadata(folder: Path) -> None:
    """Copy the metadata by which vLLM finds the weight receivers, for a cluster without an installed maxpo."""
    distribution = importlib.metadata.distribution("maxpo")
    target = folder / f"maxpo-{distribution.version}.dist-info"
    target.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (target / name).write_text(distribution.read_text(name) or "", encoding="utf-8")
