"""What a user can do something about, as opposed to mistakes of this code."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was given is wrong: a setting, a file, a machine with too little. Nothing was started."""


class DataError(InputError):
    """Rows that cannot be used; the message names file, line, field and what was expected."""


class RunError(RuntimeError):
    """A run failed for a reason outside this process; the message names who and what."""


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message names folder and file."""


class RemoteError(RunError):
    """A remote worker failed or did not answer in time; the message names it."""


class LateError(RemoteError):
    """A remote worker did not answer in time."""


class LearnerLostError(RemoteError):
    """The learner is gone, in part or as a whole, and can only be started again, from a checkpoint."""
