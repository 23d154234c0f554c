"""Memory of received buckets."""

from __future__ import annotations

import torch

from maxpo.weights.buckets import ALIGNMENT
from maxpo.weights.buffers import Buffers


def test_memory_is_used_again_when_no_view_of_it_is_left() -> None:
    buffers = Buffers(1000, 2)
    first, second = buffers.take(100), buffers.take(1000)
    places = {first.data_ptr(), second.data_ptr()}
    assert (len(first), len(second)) == (100, 1000)
    assert all(place % ALIGNMENT == 0 for place in places)
    view = first[8:16].view(torch.int64)
    del first, second
    third = buffers.take(500)
    assert third.data_ptr() in places
    assert third.data_ptr() != view.data_ptr() - 8, "a view is left"
    del view
    assert buffers.take(500).data_ptr() in places - {third.data_ptr()}


def test_only_so_many_buffers_are_kept_and_a_larger_one_takes_the_place_of_smaller_ones() -> None:
    buffers = Buffers(10, 2)
    held = [buffers.take(10) for _ in range(5)]
    assert len({t.data_ptr() for t in held}) == 5
    kept = {t.data_ptr() for t in held[:2]}
    del held
    held = [buffers.take(10) for _ in range(2)]
    assert {t.data_ptr() for t in held} == kept
    del held
    large = buffers.take(1 << 20)
    place = large.data_ptr()
    del large
    assert buffers.take(1 << 19).data_ptr() == place
