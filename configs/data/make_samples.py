"""Writes `*_sample.jsonl`, which people read and change, as parquet files in the layout of verl's scripts.

    python configs/data/make_samples.py

The problems are our own, in the style of GSM8K and MATH. Of each row of the JSON lines, `wrong` is an answer that must
not pass, and `by` computes the right one; tests/core/data/test_samples.py does both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

FOLDER = Path(__file__).parent
ASKS = {
    "gsm8k": 'Think step by step and give the final number after "####".',
    "math": "Think step by step and give the final answer in \\boxed{}.",
}


def rows(style: str, split: str) -> list[dict[str, Any]]:
    """The rows of one parquet file, in verl's layout."""
    lines = (FOLDER / f"{style}_sample.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row for row in map(json.loads, lines) if row["split"] == split]
    return [
        {
            "data_source": f"maxpo/{style}_sample",
            "prompt": [{"role": "user", "content": f"{row['problem']} {ASKS[style]}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": {"split": split, "index": index},
        }
        for index, row in enumerate(found)
    ]


if __name__ == "__main__":
    for style in ASKS:
        for split in ("train", "test"):
            table = pyarrow.Table.from_pylist(rows(style, split))
            pyarrow.parquet.write_table(table, FOLDER / f"{style}_sample_{split}.parquet")
