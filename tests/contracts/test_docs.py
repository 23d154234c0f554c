"""Documents name files, links, Python names and settings that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from maxpo.configure.fields import schema, sections
from maxpo.tracking.metrics import METRICS
from tests.contracts.floors import FLOORS

DOCUMENTS = sorted(path for folder in (".", "docs", "docs/examples", "docker") for path in Path(folder).glob("*.md"))
FOLDERS = "maxpo|rollout|learner|launch|tests|docs|benchmarks|configs|docker|requirements"
A_PATH = re.compile(rf"(?<![\w./$-])(?:{FOLDERS})/[\w.*/-]*(?:::[A-Za-z_]\w*)?")
A_LINK = re.compile(r"\]\(([^)\s]+)\)")
A_FILE = re.compile(r"`(\w+\.(?:py|sh))(?:::(\w+))?`")
A_MODULE = re.compile(r"(?<![\w./-])(?:maxpo|rollout|learner|launch)(?:\.[A-Za-z_]\w*)+")
AN_IMPORT = re.compile(r"^\s*from ((?:maxpo|rollout|learner|launch)[\w.]*) import ([\w, ]+)", re.MULTILINE)
A_SETTING = re.compile(rf"(?<![\w./-])(?:{'|'.join(sections())})(?:\.[a-z_]\w*)+")

OTHER_FILES = {"tiny_benchmarks.py", "hle.py", "aime_pass.py"}
"""Files of lighteval, and a file that docs/evaluation.md tells the reader to write."""
NOT_SETTINGS = {"algorithm.group_sizes", "ray.init", "ray.wait", "ray.get"}
"""A mistake on purpose in README.md, and functions of Ray."""
FILE_ENDINGS = ("json", "jsonl", "md", "py", "yaml", "parquet", "txt")


@cache
def bound_names(file: Path) -> frozenset[str]:
    """Return all names that a Python file defines, assigns or imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name) for alias in node.names}
    return frozenset(names)


def exists(name: str) -> bool:
    """Return True if a path such as `tests/core/`, `tests/*.py` or `maxpo/loop/train.py::train` exists."""
    path, _, function = name.partition("::")
    path = path.rstrip(".")
    if "*" in path:
        return any(Path().glob(path.rstrip("/")))
    return Path(path).exists() and (not function or function in bound_names(Path(path)))


def resolves(dotted: str) -> bool:
    """Return True if a dotted name is a module, or a name that the module binds."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = Path(*parts[:length])
        module = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if module.exists():
            return length == len(parts) or parts[length] in bound_names(module)
        if base.is_dir():
            return length == len(parts)
    return False


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_setting(name: str) -> bool:
    """Return True if a name is a setting, a part of one such as `learner.lora`, or a prefix such as `reward.code_`."""
    begins = name if name.endswith("_") else f"{name}."
    return name in NOT_SETTINGS or any(key == name or key.startswith(begins) for key in schema())


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_paths_exist(document: Path) -> None:
    paths = set(A_PATH.findall(document.read_text(encoding="utf-8"))) - set(METRICS)
    assert sorted(name for name in paths if not exists(name)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_file_names_exist(document: Path) -> None:
    # A bare name, such as `test_resume.py`, may stand for a file of any folder.
    known = {path.name: path for pattern in ("*.py", "*.sh") for path in Path().glob(f"[a-z]*/**/{pattern}")}
    names = A_FILE.findall(document.read_text(encoding="utf-8"))
    assert [name for name, _ in names if name not in known and name not in OTHER_FILES] == []
    assert [(name, f) for name, f in names if f and f not in bound_names(known[name])] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_resolve(document: Path) -> None:
    broken: list[str] = []
    for link in A_LINK.findall(document.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = document.parent / target if target else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_python_names_resolve(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    names = {f"{module}.{name.strip()}" for module, found in AN_IMPORT.findall(text) for name in found.split(",")}
    # A dotted name may also be a setting, such as learner.lr.
    names |= {name for name in A_MODULE.findall(text) if name.split(".")[0] not in sections()}
    ended = tuple(f".{ending}" for ending in FILE_ENDINGS)
    assert sorted(name for name in names if not name.endswith(ended) and not resolves(name)) == []


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=str)
def test_settings_exist(document: Path) -> None:
    # The changelog also names settings that were removed.
    names = set(A_SETTING.findall(document.read_text(encoding="utf-8")))
    names = {name for name in names if name.rpartition(".")[2] not in FILE_ENDINGS}
    assert sorted(name for name in names if not is_setting(name) and not resolves(name)) == []


def test_the_map_has_every_folder_and_its_floor() -> None:
    text = Path("ARCHITECTURE.md").read_text(encoding="utf-8")
    for package, floors in FLOORS.items():
        for number, floor in enumerate(floors):
            for folder in (f"{package}/{room}/" for room in floor if room and Path(package, room).is_dir()):
                assert f"`{folder}`" in text
                assert package != "maxpo" or f"| {number} | `{folder}` |" in text
