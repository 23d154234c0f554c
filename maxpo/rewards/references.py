"""References of rows, as the texts that verifiers compare answers with."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import cast


def alternatives(verifier: str, reference: object) -> tuple[str, ...]:
    """Return the texts of a reference. An answer is right if it equals one of them.

    A number of JSON is written in full: 0.00001 and not 1e-05.

    Args:
        verifier: Name of the verifier, for messages.
        reference: Text, a number, or a list of them.

    Raises:
        ValueError: The reference is null, true, false, an object, an empty list, a list of lists, or not finite.
    """
    if isinstance(reference, list | tuple):
        members = cast("list[object]", reference)
        if not members or any(isinstance(member, list | tuple) for member in members):
            raise ValueError(f"{verifier}: a list of references must hold texts or numbers, got {reference!r:.80}")
        return tuple(_text(verifier, member) for member in members)
    return (_text(verifier, reference),)


def _text(verifier: str, reference: object) -> str:
    if isinstance(reference, str):
        return reference
    if isinstance(reference, int) and not isinstance(reference, bool):
        return str(reference)
    if isinstance(reference, float) and math.isfinite(reference):
        text = repr(reference)
        return format(Decimal(text), "f") if "e" in text else text
    allowed = "text, a finite number or a list of them"
    raise ValueError(f"{verifier}: the reference must be {allowed}, got {reference!r:.80}")
