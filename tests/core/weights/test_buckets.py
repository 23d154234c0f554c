"""Checksums, buckets, rendezvous."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maxpo.seeds import derive_seed
from maxpo.weights.buckets import TensorMeta, cut_into_buckets, packed_size, unpack_bucket
from maxpo.weights.checksum import bytes_digest, tensor_digest
from maxpo.weights.rendezvous import gloo_group, join_store, serve_store

MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "one changed value": lambda t: t.index_put((torch.tensor(3), torch.tensor(2)), torch.tensor(9).to(t.dtype)),
    "the lowest bit of one value": lambda t: flipped(t, 7, 0),
    "the sign of one value": lambda t: flipped(t, 9, 8 * t.itemsize - 1),
    "two swapped rows": lambda t: t[[0, 1, 3, 2, *range(4, len(t))]],
    "two swapped columns": lambda t: t[:, [1, 0, *range(2, t.shape[1])]],
    "shifted rows": lambda t: t.roll(1, 0),
    "shifted by one value": lambda t: t.flatten().roll(1),
    "transposed": lambda t: t.T.contiguous(),
    "from the end to the start": lambda t: t.flip(0, 1),
    "another tensor": lambda t: t + 1,
    "scaled": lambda t: t * 2,
    "the last row is missing": lambda t: t[:-1],
    "the last row is zero": lambda t: torch.cat([t[:-1], t[-1:] * 0]),
    "zeros at the end": lambda t: torch.cat([t, t[-1:] * 0]),
    "the first row twice": lambda t: torch.cat([t[:1], t[:1], t[2:]]),
}
DIGESTS: list[Callable[[Tensor], Tensor | int]] = [tensor_digest, bytes_digest]


def flipped(tensor: Tensor, index: int, bit: int) -> Tensor:
    """The tensor with another bit."""
    data = tensor.clone()
    data.view(-1).view(torch.uint8)[index * tensor.itemsize + bit // 8] ^= 1 << bit % 8
    return data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64])
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("digest", DIGESTS)
def test_a_digest_sees_every_mistake(
    digest: Callable[[Tensor], Tensor | int], mistake: str, dtype: torch.dtype
) -> None:
    right = torch.arange(1, 61).view(10, 6).to(dtype)
    assert int(digest(right)) == int(digest(right.clone().view(6, 10)))
    assert int(digest(MISTAKES[mistake](right).contiguous())) != int(digest(right))


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_digest_sees_any_two_swapped_values(digest: Callable[[Tensor], Tensor | int]) -> None:
    """Of the same size and other signs too, and at distances that are powers of two."""
    values = torch.ones(65)
    values[::2] = -1
    values[0] = 3
    right = int(digest(values))
    for i in range(65):
        for j in range(i):
            swapped = values.clone()
            swapped[i], swapped[j] = values[j], values[i]
            assert (int(digest(swapped)) == right) == (values[i] == values[j])


def test_a_digest_does_not_depend_on_layout_and_sees_zeros() -> None:
    t = torch.randn(33, 17, generator=torch.Generator().manual_seed(0))
    assert int(tensor_digest(t.T.contiguous().T)) == int(tensor_digest(t))
    assert int(tensor_digest(torch.zeros(3))) != int(tensor_digest(torch.zeros(4)))
    assert int(tensor_digest(torch.zeros(0))) == 0
    # More than one chunk: equal to the formula written out with Python's integers. An odd number of 2-byte words ...
    long = torch.randint(-9, 9, ((1 << 18) + 5,), dtype=torch.int16, generator=torch.Generator().manual_seed(1))
    total = len(long) + sum(w * (2 * i + 1) for i, w in enumerate(long.tolist()))
    assert int(tensor_digest(long)) == total
    # ... and 4-byte words, whose sum wraps around.
    wide = torch.randn((1 << 18) + 5, generator=torch.Generator().manual_seed(1))
    total = len(wide) + sum(w * (2 * i + 1) for i, w in enumerate(wide.view(torch.int32).tolist()))
    assert int(tensor_digest(wide)) % (1 << 64) == total % (1 << 64)
    # Values that differ in their sign alone, exchanged; and a view whose memory is not aligned for 4-byte words.
    pair = torch.tensor([1.5, 2.0, -1.5, 2.0])
    assert int(tensor_digest(pair)) != int(tensor_digest(pair.roll(2)))
    odd = torch.arange(9, dtype=torch.bfloat16)[1:]
    assert int(tensor_digest(odd)) == int(tensor_digest(odd.clone()))


def test_buckets_keep_the_order_and_the_limit() -> None:
    metas = [TensorMeta(str(i), torch.float32, (n,)) for i, n in enumerate([10, 10, 5, 100, 1, 1])]
    cut = [[m.name for m in b] for b in cut_into_buckets(metas, 80)]
    assert cut == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert list(cut_into_buckets([], 80)) == []


def test_a_bucket_of_mixed_dtypes_comes_apart_as_it_was_put_together() -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.int8),
        "f": torch.randn(2, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "g": torch.randn(4, dtype=torch.float64),
    }
    metas = [TensorMeta(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
    buffer = torch.zeros(packed_size(metas), dtype=torch.uint8)
    for name, place in unpack_bucket(buffer, metas):
        place.copy_(tensors[name])
    for name, tensor in unpack_bucket(buffer, metas):
        assert torch.equal(tensor, tensors[name])
        assert tensor.shape == tensors[name].shape


def test_the_rendezvous_listens_on_its_host_alone_and_a_group_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store, port = serve_store("127.0.0.1", 20)
    with socket.socket(socket.AF_INET) as probe, pytest.raises(OSError):
        probe.connect(("127.0.0.2", port))
    got = torch.zeros(4)

    def receive() -> None:
        group = gloo_group(join_store("127.0.0.1", port, 20), 1, 2, 20)
        group.broadcast(got, 0).wait()

    thread = threading.Thread(target=receive)
    thread.start()
    gloo_group(store, 0, 2, 20).broadcast(torch.tensor([1.0, 2.0, 3.0, 4.0]), 0).wait()
    thread.join(20)
    assert got.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_missing_rank_is_an_error_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store, _ = serve_store("127.0.0.1", 1)
    with pytest.raises(RuntimeError):
        gloo_group(store, 0, 2, 1)


def test_seeds_are_the_same_everywhere_and_different_for_different_names() -> None:
    assert derive_seed(0, "step1.0", "p") == 3736264803348460573
    seeds = {derive_seed(run, draw, p) for run in range(3) for draw in ("a", "b") for p in ("x", "y", "x\x1fy")}
    assert len(seeds) == 18
    assert all(0 <= s < 2**62 for s in seeds)
