"""Seeds derived from names. A sample depends on its name only, not on the time or the machine of the draw."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: object) -> int:
    """Return a seed of 62 bits from the text of the parts, equal on every machine."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
