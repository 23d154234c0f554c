"""The last error in the output of an engine, whose process tells its parent only that it died."""

from __future__ import annotations

import os
import re
from pathlib import Path

from maxpo.runtime.output import NEW_PROCESS
from maxpo.wording import plain, shown

TAIL = 1 << 18
"""Number of bytes at the end of the output that are read."""
_ERROR = re.compile(r"(?:^|[\])] )((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)")
_SECOND_HAND = ("EngineDeadError", "EngineGenerateError", "Engine core initialization failed", "EngineLostError")


def last_error(file: Path = Path("/proc/self/fd/2")) -> str | None:
    """Return the last error in a file that tells a reason, on one line. None: the file has none, or is no file.

    Args:
        file: Output of the engine. By default that of this process, which the processes of the engine share.
    """
    try:
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - TAIL))
            text = plain(opened.read().decode(errors="replace"))
    except OSError:
        return None
    text = text.rpartition(NEW_PROCESS)[2]  # an earlier process may have written to the same file
    found = [match[1] for line in text.splitlines() if (match := _ERROR.search(line))]
    first_hand = [line for line in found if not any(word in line for word in _SECOND_HAND)]
    return shown(first_hand[-1].strip(), 400) if first_hand else None


def with_last_error(text: str) -> str:
    """Return a text about the end of an engine, with the last error in the output of this process."""
    error = last_error()
    return f"{text}: {error}" if error else text
