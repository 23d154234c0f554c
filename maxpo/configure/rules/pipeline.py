"""Checks of several settings of the section `pipeline` together."""

from __future__ import annotations

from maxpo.configure.rules import Combination

PIPELINE_COMBINATIONS: tuple[Combination, ...] = (
    (
        ("pipeline.lookahead", "pipeline.max_staleness"),
        lambda c: c.pipeline.lookahead is None or c.pipeline.lookahead <= c.pipeline.max_staleness,
        "pipeline.lookahead must be at most pipeline.max_staleness: prompts that are sampled further ahead would be "
        "trained too late.",
    ),
    (
        ("pipeline.max_staleness", "algorithm.tis_cap"),
        lambda c: not c.pipeline.max_staleness or c.algorithm.tis_cap is not None,
        "With pipeline.max_staleness above 0, groups come from older weights than the policy that they train, and only "
        "the importance weights correct this: algorithm.tis_cap must be a number, for example 2.",
    ),
    (
        ("pipeline.update", "pipeline.max_staleness"),
        lambda c: c.pipeline.update != "drained" or c.pipeline.max_staleness == 1,
        "With pipeline.update drained nothing is sampled while weights are sent, so groups are one step old: "
        "pipeline.max_staleness must be 1.",
    ),
    (
        ("pipeline.cache", "pipeline.max_staleness", "pipeline.update"),
        lambda c: c.pipeline.cache != "keep" or (c.pipeline.max_staleness > 0 and c.pipeline.update == "in_flight"),
        "Only completions that run while weights are sent have a cache to keep: pipeline.cache keep needs "
        "pipeline.max_staleness above 0 and pipeline.update in_flight.",
    ),
)
