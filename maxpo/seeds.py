"""Seeds derived from names, so that a sample depends on what it is and not on when or where it is drawn."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: object) -> int:
    """A seed of 62 bits from the parts' text, the same on every machine."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
