"""Expected errors. Any other exception is a bug, and keeps its traceback.

    InputError                  an input is wrong, nothing was started: exit code 2
        ConfigError             settings (maxpo/configure/problems.py)
        DataError               rows
        CheckpointError         a checkpoint
        ProblemsError           several of them
        ResourceError           GPUs or other resources are missing (launch/cluster/placement.py)
    RunError                    a run failed for a reason outside its process: exit code 1
        RemoteError             a remote worker failed
            LateError           ... or passed a deadline
            LearnerLostError    ... or the learner is lost, and only a restart helps
        EngineLostError         an engine's process died (rollout/worker.py)
        VerifierError           the verifier pool failed (rollout/scoring/verifier_pool.py)
        RemoteStoreError        an object store failed (maxpo/checkpoints/remote.py)
        StalledError            no progress (launch/run/watchdog.py)
        PreemptedError          a signal ended the run at its start: exit code 75 (launch/run/signals.py)
            StopTooLateError    ... or the run did not end in time after a signal

Three errors never leave their package: `SandboxError` and `CaseError` of the code sandbox (maxpo/rewards/code/), and
`StepError` of an environment (rollout/episodes/). Each ends as the outcome of one sample.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


class InputError(ValueError):
    """A wrong input: a setting, a file, or a machine with too few resources. Nothing was started."""


class ProblemsError(InputError):
    """Several wrong inputs that are told together."""

    def __init__(self, problems: Sequence[str], left_out: Sequence[str] = ()) -> None:
        """Keep the problems.

        Args:
            problems: A text for each problem.
            left_out: Names of the checks that could not be made, since they need what is wrong.
        """
        super().__init__(problems, left_out)
        self.problems, self.left_out = list(problems), list(left_out)

    def __str__(self) -> str:
        lines = [textwrap.indent(text, "" if text.startswith("  ") else "  ") for text in self.problems]
        lines.insert(0, f"{len(lines)} problems, nothing was started:")
        if len(self.problems) == 1:
            lines = [self.problems[0].strip()]
        if self.left_out:
            lines.append(f"Not checked, since it needs what is wrong: {', '.join(self.left_out)}.")
        return "\n\n".join(lines)


class DataError(InputError):
    """Unusable rows of data. The message names file, line, field and the expected value."""


class RunError(RuntimeError):
    """Failure of a run for a reason outside this process. The message names the worker or file and the reason."""


class CheckpointError(InputError):
    """Unusable checkpoint. The message names folder and file."""


class RemoteError(RunError):
    """Failure or timeout of a remote worker. The message names the worker."""


class LateError(RemoteError):
    """Timeout of a remote worker."""


class LearnerLostError(RemoteError):
    """Loss of a part or all of the learner. The learner must be started again from a checkpoint."""
