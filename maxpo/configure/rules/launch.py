"""Checks of the section `launch`."""

from __future__ import annotations

import re

DNS_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"


def is_line(text: str) -> bool:
    """Whether the text is one line: control characters would end it, or hide what follows, in a job's script."""
    return bool(text.strip()) and text.isprintable()


def is_variable(name: object, value: object) -> bool:
    """Whether the pair can be an environment variable of a job: a plain name, and a value on one line."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None
        and not name.startswith("RAY_AUTH_")
        and isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and str(value).isprintable()
    )
