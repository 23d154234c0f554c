"""One way to print a line of text."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a text as it is: nothing in it is coloured, taken for markup or broken into lines."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
