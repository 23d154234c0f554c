"""Checks that the type and the range of a single field cannot express: registries, files, and several settings."""

from __future__ import annotations

from collections.abc import Callable

from maxpo.config import Config

Combination = tuple[tuple[str, ...], Callable[[Config], bool], str]
"""Keys that a check reads, the condition on the settings, and the message if the condition fails."""
Fault = tuple[tuple[str, ...], str]
"""Keys that are involved in a problem, and its message."""
