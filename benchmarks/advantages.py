"""Cost of Leave-Two-Out advantages by four methods, side by side in one run.

    python benchmarks/advantages.py [--device cuda]

- batched: `maxpo.estimators.mixing.mixed`, called as a training step does: with a K for each group and a mask.
- pairs: the definition, the increment of each j without each i, vectorised over all pairs with sorted rewards: O(N^2).
- loop: one group after the other, samples collected by prompt and written back one by one, as in common trainers.
- sort: `torch.sort` of the same rewards, the part that every method needs.

Rounds alternate between the methods. The script prints medians and checks that all methods agree.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from evidence.common import machine

from maxpo.estimators.mixing import mixed
from maxpo.estimators.order_statistics import include_one_weights

SIZES = ((64, 8), (1024, 16), (1024, 64), (256, 1024))
PAIR_ELEMENTS = 1 << 22
"""Number of pairs in memory at once."""


def by_pairs(rewards: Tensor, k: int) -> Tensor:
    """Return K (f_i - mean_j f_j without i), from the definition."""
    rows = max(1, PAIR_ELEMENTS // rewards.shape[1] ** 2)
    return torch.cat([_by_pairs(part, k) for part in rewards.split(rows)])


def _by_pairs(rewards: Tensor, k: int) -> Tensor:
    n = rewards.shape[1]
    x, order = rewards.double().sort(1)
    ranks = torch.arange(n, device=x.device)

    def best_of_others(size: int) -> Tensor:
        """Return the probability that rank m is the best of K - 1 others in a group of `size`, counted from the top."""
        return torch.tensor(
            [math.comb(m, k - 2) / math.comb(size - 1, k - 1) for m in range(size)], dtype=torch.float64
        ).to(x.device)

    def increments(values: Tensor, weight: Tensor) -> Tensor:
        part = weight * values
        return values * (weight.cumsum(-1) - weight) - (part.cumsum(-1) - part)

    own = increments(x, best_of_others(n))
    # Without i, ranks above i move down by one, and i has weight 0.
    lower = best_of_others(n - 1)[(ranks - (ranks > ranks[:, None]).long()).clamp(max=n - 2)]
    lower = lower.masked_fill(ranks == ranks[:, None], 0.0)
    without = increments(x[:, None, :].expand(-1, n, -1), lower)
    without = without.masked_fill(ranks == ranks[:, None], 0.0)
    at_rank = k * (own - without.sum(2) / (n - 1))
    return torch.empty_like(at_rank).scatter_(1, order, at_rank)


def by_loop(rewards: Tensor, k: int) -> Tensor:
    """Compute the advantages of flat rewards with prompt numbers, one group after the other."""
    groups, n = rewards.shape
    flat = rewards.flatten()
    prompt = torch.arange(groups).repeat_interleave(n).tolist()
    own, running, every = include_one_weights(n, k, "max", n, rewards.device)
    collected: dict[int, list[Tensor]] = defaultdict(list)
    for i in range(len(flat)):
        collected[prompt[i]].append(flat[i])
    of_group: dict[int, Tensor] = {}
    for index, scores in collected.items():
        x, order = torch.stack(scores).double().sort()
        included = (x * running).cumsum(0) + x * own + (x * every).sum()
        of_group[index] = torch.empty_like(included)
        of_group[index][order] = k * n / (n - k) * (included - included.mean())
    result = torch.empty(len(flat), dtype=torch.float64, device=rewards.device)
    place: dict[int, int] = defaultdict(int)
    for i in range(len(flat)):
        result[i] = of_group[prompt[i]][place[prompt[i]]]
        place[prompt[i]] += 1
    return result.view(groups, n)


def every_group(rewards: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the K of each group, and the mask of valid samples."""
    return torch.full((len(rewards),), k, device=rewards.device), torch.ones_like(rewards, dtype=torch.bool)


def seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(methods: dict[str, Callable[[], object]], device: str, budget_s: float = 6.0) -> dict[str, float]:
    """Return the median milliseconds of each method over alternating rounds."""
    first = {name: (seconds(call, device), seconds(call, device))[1] for name, call in methods.items()}
    rounds = max(3, min(50, int(budget_s / sum(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, call in methods.items():
            # Repeat short calls, otherwise a round mostly measures the clock.
            repeats = max(1, int(2e-3 / first[name]))
            times[name].append(seconds(lambda call=call, n=repeats: [call() for _ in range(n)], device) / repeats)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of torch; with more, a busy machine spoils the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, k = args.device, args.k
    name = torch.cuda.get_device_name() if device == "cuda" else machine()
    print(f"{name}; {args.threads} thread(s); K = {k}; median ms, rounds alternate")
    generator = torch.Generator().manual_seed(0)
    columns = ("batched", "pairs", "loop", "sort", "pairs/batched", "loop/batched", "batched/sort")
    print(f"{'G x N':>12}" + "".join(f"{column:>14}" for column in columns))
    for groups, n in SIZES:
        rewards = torch.rand(groups, n, generator=generator).to(device)
        batched = partial(mixed, "maxpo", rewards, *every_group(rewards, k))
        want = batched().double()
        for other in (by_pairs, by_loop):
            torch.testing.assert_close(other(rewards, k), want, rtol=1e-5, atol=1e-6)
        ms = compare(
            {
                "batched": batched,
                "pairs": partial(by_pairs, rewards, k),
                "loop": partial(by_loop, rewards, k),
                "sort": partial(torch.sort, rewards, 1),
            },
            device,
        )
        ratios = (ms["pairs"] / ms["batched"], ms["loop"] / ms["batched"], ms["batched"] / ms["sort"])
        print(
            f"{groups:>6} x {n:<4}" + "".join(f"{v:14.3f}" for v in ms.values()) + "".join(f"{r:14.1f}" for r in ratios)
        )
    print("\ngrowth with N, 262,144 rewards in all:")
    print(f"{'G x N':>12} {'batched':>9} {'sort':>8}   batched/sort   ns per reward")
    for n in (4, 16, 64, 256, 1024, 4096):
        groups = (1 << 18) // n
        rewards = torch.rand(groups, n, generator=generator).to(device)
        batched = partial(mixed, "maxpo", rewards, *every_group(rewards, n // 2))
        ms = compare({"batched": batched, "sort": partial(torch.sort, rewards, 1)}, device, 2.0)
        print(
            f"{groups:>6} x {n:<4}{ms['batched']:9.3f} {ms['sort']:8.3f}   {ms['batched'] / ms['sort']:12.1f}"
            f"   {1e6 * ms['batched'] / (1 << 18):13.1f}"
        )


if __name__ == "__main__":
    main()
