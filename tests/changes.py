"""Random changes of JSON documents, for property tests of files that somebody has damaged."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import strategies as st

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Return the document with one value replaced or removed, at any depth."""
    if isinstance(document, dict) and document and draw(st.integers(0, 5)):
        mapping = cast("dict[str, Any]", document)
        key = draw(st.sampled_from(sorted(mapping)))
        if draw(st.booleans()):
            return {k: v for k, v in mapping.items() if k != key}
        return mapping | {key: draw(changed(mapping[key]))}
    if isinstance(document, list) and document and draw(st.integers(0, 5)):
        values = cast("list[Any]", document)
        index = draw(st.integers(0, len(values) - 1))
        return [draw(changed(v)) if i == index else v for i, v in enumerate(values)]
    return draw(VALUES)
