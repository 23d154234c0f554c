"""Settings, order and summary of all tests. Ray reads its authentication when it is imported, so that comes first."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launch.cluster.ray_environment import secure_own_cluster

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

# Libraries that could ask a hub for files must not; the suite runs without a network.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# One OpenMP thread in this process and those it starts: engines and learner ranks run beside it, and idle threads spin.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
secure_own_cluster()

# Files that share a system, a trained run or learner processes, the longest first. `make test` gives each group to one
# of its processes and starts with the longest, so that no process waits long for the other at the end.
GROUPS = (
    ("test_resume", "test_cli"),
    ("test_stack", "test_stack_restarts"),
    ("test_cluster",),
    ("test_gradients", "test_lora", "test_nonfinite", "test_training_state"),
    ("test_chaos",),
    ("test_environments",),
)
PLACES = {name: place for place, names in enumerate(GROUPS) for name in names}

REMEDIES = {
    "no CUDA device": "run them on a machine with an NVIDIA GPU",
    "could not import": "make setup-all",
    "does not work here": "install bubblewrap, as .ci/run does",
    "no network namespaces": "run as root and with iproute2, as .ci/run does",
    "is not installed": "make setup",
}
"""Part of the reason for a skip: how to run the test."""


def place_of(nodeid: str) -> int:
    """Return the group of a test: an index of GROUPS, or their number for a test of no group."""
    return PLACES.get(Path(nodeid.partition("::")[0]).stem, len(GROUPS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several test processes
        items.sort(key=lambda item: place_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        """Gives a group, or a file of no group, to one process."""

        def _split_scope(self, nodeid: str) -> str:
            place = place_of(nodeid)
            return str(place) if place < len(GROUPS) else nodeid.partition("::")[0]

    return Groups(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write which tests were skipped, by reason, and how to run them."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        remedy = next((how for part, how in REMEDIES.items() if part in reason), "")
        terminalreporter.write_line(f"{count} skipped: {reason}" + (f" ({remedy})" if remedy else ""))
