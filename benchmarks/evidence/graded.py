"""Estimators on short tours with a graded reward.

Every seed has 24 prompts with 9 cities each, uniform in a square. A sample is a round tour from the first city. Its
reward is the length of the shortest tour (by enumeration) divided by the length of the tour, so at most 1 and, even for
a random tour, well above 0. The policy does not see the map. It is a table of softmax logits, by step and previous
choice, for the nearest remaining city, the second nearest and so on. No single rule is right for all maps, so the best
policy for max@8 varies its choices more than the best policy for max@1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import torch
import toy
from torch import Tensor

CITIES = 9
MAPS = 24


class Tours:
    """A batch of sets of maps; implements `toy.Task`."""

    def __init__(self, seeds: Sequence[int]) -> None:
        places = torch.tensor(np.stack([np.random.default_rng(seed).random((MAPS, CITIES, 2)) for seed in seeds]))
        self.distance = torch.cdist(places, places).float()
        self.shortest = torch.stack([shortest_tours(maps) for maps in self.distance])
        self.weights = torch.full((len(places), MAPS), 1 / MAPS)

    def first_parameters(self) -> Tensor:
        """Return parameters of uniformly random tours."""
        return torch.zeros(len(self.distance), CITIES - 1, CITIES - 1, CITIES - 1)

    def rollout(self, parameters: Tensor, prompts: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n tours for each prompt."""
        batch, count = prompts.shape
        seed = torch.arange(batch)[:, None, None].expand(-1, count, n)
        place = prompts[:, :, None].expand(-1, -1, n)
        distance = self.distance.masked_fill(torch.eye(CITIES, dtype=torch.bool), torch.inf)
        city, choice = torch.zeros_like(seed), torch.zeros_like(seed)
        visited = torch.zeros(batch, count, n, CITIES, dtype=torch.bool)
        length, logp = torch.zeros(batch, count, n), torch.zeros(batch, count, n)
        for step in range(CITIES - 1):
            visited = visited.scatter(-1, city[..., None], True)
            ways, cities = distance[seed, place, city].masked_fill(visited, torch.inf).sort(-1)
            table = torch.log_softmax(parameters[:, step, :, : CITIES - 1 - step], -1)
            options = table[seed, choice]
            bounds = options.detach().exp().cumsum(-1)[..., :-1]
            choice = (torch.rand(batch, count, n, 1, generator=rng) > bounds).sum(-1)
            logp = logp + options.gather(-1, choice[..., None]).squeeze(-1)
            length = length + ways.gather(-1, choice[..., None]).squeeze(-1)
            city = cities.gather(-1, choice[..., None]).squeeze(-1)
        length = length + distance[seed, place, city, 0]
        return self.shortest.gather(1, prompts)[:, :, None] / length, logp


def shortest_tours(distance: Tensor) -> Tensor:
    """Return the length of the shortest round tour on each of the maps [M, C, C]."""
    orders = [order for order in permutations(range(1, CITIES)) if order[0] < order[-1]]
    tours = torch.tensor([(0, *order, 0) for order in orders])
    return torch.stack([leg[tours[:, :-1], tours[:, 1:]].sum(1).min() for leg in distance])


if __name__ == "__main__":
    toy.main("graded", __doc__ or "", Tours, reward="max", steps=500)
