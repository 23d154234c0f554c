"""The floors of the house: which folder of a package may import which other folder of the same package.

A room is a folder, or a module that lies directly in a package. An import leads to the same room or to a lower floor.
`python -m tests.contracts.floors` prints the number of rooms, floors and arrows of each package.
"""

from __future__ import annotations

import ast
from pathlib import Path

FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "maxpo": (
        ("", "checked_json", "config", "errors", "seeds", "timing", "types", "weights", "wording"),
        ("files", "plugins", "runtime"),
        ("batches", "estimators", "losses"),
        ("environments", "protocols", "rewards"),
        ("checkpoints", "evaluation", "tasks", "tracking"),
        ("configure", "data"),
        ("loop",),
    ),
    "learner": (
        ("", "loss_scale"),
        ("deepspeed_engine", "model"),
        ("state", "update", "weight_sync"),
        ("worker",),
        ("group",),
    ),
    "rollout": (
        ("", "plugin", "process_pool", "protocols", "vllm_engine"),
        ("comparison", "endings", "episodes", "scoring"),
        ("worker",),
        ("fleet",),
        ("slots",),
        ("sampling",),
        ("pool",),
    ),
    "launch": (
        ("", "cluster", "limited", "terminal"),
        ("doctor", "memory", "pipeline", "run"),
        ("submit",),
        ("commands",),
        ("cli",),
    ),
}
"""Package -> its floors from the ground up; "" is the package itself, `<package>/__init__.py`."""


def room_of(module: str) -> str:
    """Name of the room of a module, such as `config` for `maxpo.config.run`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def arrows(package: str) -> dict[tuple[str, str], str]:
    """(room, imported room) -> the first file with such an import, from every import statement of a package."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted(Path(package).rglob("*.py")):
        here = room_of(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
        for module in _imported(path, package):
            if room_of(module) != here:
                found.setdefault((here, room_of(module)), str(path))
    return found


def _imported(path: Path, package: str) -> list[str]:
    """Modules of its own package that a file imports, wherever the import stands."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from maxpo import __version__` imports the package itself, `from maxpo import seeds` a module of it.
            modules += [
                f"{node.module}.{alias.name}" if _is_module(f"{node.module}.{alias.name}") else node.module
                for alias in node.names
            ]
    return [module for module in modules if module.split(".")[0] == package]


def _is_module(name: str) -> bool:
    path = Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


if __name__ == "__main__":
    for package, floors in FLOORS.items():
        print(f"{package}: {sum(map(len, floors))} rooms, {len(floors)} floors, {len(arrows(package))} arrows")
