"""Printing of plain text."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a text as it is, without colours, markup or line breaks of rich."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
