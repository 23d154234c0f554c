"""The examples of docs/data.md, each loaded as a run would load it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from maxpo.configure.loading import load_config
from maxpo.data.order import PromptStream
from maxpo.data.prompts import load_prompts
from maxpo.tasks.registry import TASKS
from tests.core.data.test_data import encode
from tests.core.data.test_data_sources import chat

TEXT = Path("docs/data.md").read_text()
FILES = re.findall(r"^```json (\S+)\n(.*?)^```$", TEXT, re.M | re.S)
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES:
        if name.endswith(".parquet"):
            rows = [json.loads(line) for line in text.splitlines()]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
        else:
            Path(name).write_text(text)
    if "reasoning_gym" in example:
        pytest.importorskip("reasoning_gym")
    if "saved" in example:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_list([{"question": "1 + 1?", "answer": "2"}])
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk("saved")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    other = {
        "run": {"name": "x", "steps": 1},
        "model": {"path": "model"},
        "reward": {"verifier": "numeric"},
        "rollout": {"max_new_tokens": 8},
        "learner": {"lr": 1e-6},
    }
    Path("run.yaml").write_text(example + yaml.safe_dump(other))
    config = load_config([Path("run.yaml")], []).config
    said: list[str] = []
    train, held_out = load_prompts(config.data, seed=0, eval_size=1, encode=encode, chat=chat, say=said.append)
    assert len(held_out) == 1
    assert len(PromptStream(train, 0).next(3)) == 3
    assert len(said) == len(train.parts) + max(1, len(config.data.eval))
    if config.data.system_prompt:
        assert all("<system>" in p.text for p in train)


def test_every_format_and_task_is_there() -> None:
    assert {name for name, _ in FILES} == {"math.jsonl", "gsm8k.parquet", "skyrl.parquet", "other.jsonl"}
    assert len(EXAMPLES) == 8
    assert all(f"| `{task}` |" in TEXT for task in TASKS)
