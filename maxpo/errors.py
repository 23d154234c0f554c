"""What a user can do something about, as opposed to mistakes of this code."""


class InputError(ValueError):
    """Something that was given is wrong: a setting, a file, a machine with too little. Nothing was started."""


class DataError(InputError):
    """Rows that cannot be used; the message names file, line, field and what was expected."""


class RunError(RuntimeError):
    """A run failed for a reason outside this process; the message names who and what."""
