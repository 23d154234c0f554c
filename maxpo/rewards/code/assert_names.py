"""Names in tests that stand for functions of the tested program. Only the tests decide, never the program alone."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramNames:
    """Names in asserts that stand for functions of the program."""

    free: tuple[str, ...]
    """Names that neither Python nor the tests define. An import of all names in the tests may define them after all."""
    tested: tuple[tuple[str, ...], ...]
    """For each test, names that are the program's although Python has the same: functions under test, such as `pow`.
    Of several, only those that the program defines are its own."""
    candidate: str | None = None
    """Name of the function that `check(candidate)` of the tests takes. None: the tests call everything themselves."""


@lru_cache(maxsize=256)  # a group has many answers to the same tests
def program_names(setup: str, asserts: tuple[str, ...], entry: str | None) -> ProgramNames:
    """Return the names in the tests that stand for functions of the program.

    A name that nothing defines is the program's. Builtin functions are Python's, so that a program cannot replace those
    that look at its values. Exceptions are the entry point, and an assert that uses nothing but builtin functions:
    there one of these is under test.

    Args:
        setup: Code before the asserts.
        asserts: Code of the tests.
        entry: Name of the function under test, if the reference gives it.

    Raises:
        ValueError: The tests are not Python, or do not tell which function is under test.
    """
    try:
        tables = [symtable.symtable(text, "tests", "exec") for text in (setup, *asserts)]
        trees = [ast.parse(text) for text in asserts]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"code: the tests cannot be used: {type(error).__name__}: {error}") from error
    used = [_names(table, symtable.Symbol.is_referenced) for table in tables]
    defined = [_names(table, _defines) for table in tables]
    anywhere, known = set[str]().union(*used), set[str]().union(*defined)
    free = tuple(sorted(anywhere - known - _BUILTINS))
    checks = any(s.get_name() == "check" and s.is_namespace() for table in tables[1:] for s in table.get_symbols())
    if checks and not entry and "check" not in anywhere:
        raise ValueError("code: the tests define `check` and do not call it. Give the function's name as `entry_point`")
    if entry:
        tested = () if checks else (entry,)
        return ProgramNames(free=free, tested=(tested,) * len(asserts), candidate=entry if checks else None)
    # What one test has made with the program's help, another may use. So only own names are known to come without it.
    plain = [names - (own if free else known) <= _BUILTINS for names, own in zip(used, defined, strict=True)][1:]
    called = [
        (_called(tree) & _BUILTINS) - known if mine else set[str]() for tree, mine in zip(trees, plain, strict=True)
    ]
    tested = _among_builtins(called)
    for tree, names in zip(trees, tested, strict=True):
        if len(names) > 1 and not _compares(tree, names):
            raise ValueError(
                f"code: the tests do not tell which of the functions {', '.join(sorted(names))} is the program's. Give "
                "its name as `entry_point`"
            )
    if not free and not any(tested):
        raise ValueError("code: the tests call no function of the program. Give the function's name as `entry_point`")
    return ProgramNames(free=free, tested=tuple(tuple(sorted(names)) for names in tested))


def _names(table: symtable.SymbolTable, wanted: Callable[[symtable.Symbol], bool]) -> set[str]:
    """Return the names of the wanted global symbols of a text, in all its scopes."""
    top = table.get_type() == "module"
    names = {symbol.get_name() for symbol in table.get_symbols() if (top or symbol.is_global()) and wanted(symbol)}
    return names.union(*(_names(child, wanted) for child in table.get_children()))


def _defines(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _among_builtins(called: Sequence[set[str]]) -> list[set[str]]:
    """Return for each test which builtin functions may be under test: of those called, the ones that all tests call."""
    some = [names for names in called if names]
    common = set[str]().union(*some).intersection(*some)
    return [common or names if names else names for names in called]


def _called(tree: ast.AST) -> set[str]:
    """Return the names that a text with an assert calls, or hands to a call."""
    names, asserts = set[str](), False
    for node in ast.walk(tree):
        asserts |= isinstance(node, ast.Assert)
        if isinstance(node, ast.Call):
            handed = [node.func, *node.args, *(keyword.value for keyword in node.keywords)]
            names |= {value.id for value in handed if isinstance(value, ast.Name)}
    return names if asserts else set()


def _compares(tree: ast.AST, names: set[str]) -> bool:
    """Return True if each assert compares for equality with something that uses none of the names.

    So a program that replaces one of these functions still has to find the right value.
    """
    return all(
        isinstance(test, ast.Compare)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.Eq | ast.Is)
        and any(
            not names & {node.id for node in ast.walk(side) if isinstance(node, ast.Name)}
            for side in (test.left, test.comparators[0])
        )
        for test in (node.test for node in ast.walk(tree) if isinstance(node, ast.Assert))
    )
