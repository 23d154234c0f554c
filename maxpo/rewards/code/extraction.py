"""The program in an answer: the last fenced block of Python, by the rules of CommonMark."""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_PYTHON = re.compile(r"py(thon)?[0-9.]*", re.IGNORECASE)
_END_OF_THINKING = "</think>"


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # here, so that the command line starts without it

    # Rules that decide where a block of code begins and ends. HTML is not one of them here: a line `<think>` would hide
    # all blocks up to the next empty line.
    rules = ["fence", "code", "blockquote", "list", "hr", "heading", "paragraph"]
    parser = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])
    parser.block.ruler.enableOnly(rules)
    return parser


def extract_program(text: str) -> str:
    """Return the last fenced block of Python. Without one, return the last block of no language, or the full text.

    Blocks after the end of the thinking (`</think>`) come first, then those in it. A block that is not closed reaches
    to the end of its part. The indentation of a block's first line is removed from all lines.
    """
    thinking, end, answer = text.partition(_END_OF_THINKING)
    for part in (answer, thinking) if end else (text,):
        blocks = _blocks(part)
        for wanted in (_is_python, _is_plain):
            if programs := [content for info, content in blocks if wanted(info)]:
                return programs[-1]
    return answer if answer.strip() else text


def _is_python(info: str) -> bool:
    words = re.findall(r"[\w.+-]+", info)
    return bool(words) and _PYTHON.fullmatch(words[0].lstrip(".")) is not None


def _is_plain(info: str) -> bool:
    return not info.strip()


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return the info string and the content of each fenced block."""
    text = text.replace("\r\n", "\n").replace("\r", "\n") + "\n"
    lines, blocks, quotes = text.split("\n"), list[tuple[str, str]](), 0
    for token in _parser().parse(text):
        quotes += token.nesting * (token.type in ("blockquote_open", "blockquote_close"))
        if token.type != "fence" or token.map is None:
            continue
        content = token.content.split("\n")[:-1]
        if not quotes:
            # CommonMark removes the indentation of the fence from each line that has it, and so moves a line of Python
            # against others. These are the lines as written.
            first = token.map[0] + 1
            content = lines[first : first + len(content)]
        blocks.append((token.info, "\n".join(_dedent(content))))
    return blocks


def _dedent(lines: list[str]) -> list[str]:
    """Remove the indentation of the first line that is not blank from all lines that have it."""
    first = next((line for line in lines if line.strip()), "")
    margin = "".join(takewhile(str.isspace, first))
    return [line.removeprefix(margin) for line in lines]
