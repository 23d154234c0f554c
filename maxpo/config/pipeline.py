"""Settings of the section `pipeline`: how far sampling may run ahead of learning."""

from dataclasses import dataclass
from typing import Annotated, Literal

from maxpo.config.ranges import between


@dataclass(kw_only=True)
class PipelineConfig:
    """The overlap of sampling and learning, within a hard bound on the age of what is trained."""

    max_staleness: Annotated[int, between(0, 64)] = 0
    """Most steps between the begin of a group's sampling and its training. No token is older, in updates of the
    weights, than this number. Groups that get old are waited for, never dropped. 0: sampling and learning alternate."""
    lookahead: Annotated[int | None, between(1, 64)] = None
    """Steps of prompts that are sampled beyond the current step, at most `max_staleness`. null: `max_staleness`, and
    groups are trained in the order of their admission. About half of `max_staleness` is as fast, with half the mean
    staleness. No effect with `max_staleness: 0`."""
    update: Literal["in_flight", "drained"] = "in_flight"
    """in_flight: engines take new weights between two tokens of a completion. drained: weights wait until nothing is
    sampled, so that every group is of one version. Slower. Needs `max_staleness: 1`."""
    cache: Literal["recompute", "keep"] = "recompute"
    """KV cache of running completions after an update. recompute: made again with the new weights. keep: the one of
    the old weights stays, which is faster and raises `mismatch/kl`."""

    @property
    def ahead(self) -> int:
        """Steps of prompts beyond the current one, with the default filled in."""
        return self.max_staleness if self.lookahead is None else min(self.lookahead, self.max_staleness)
