"""Any settings, data file or row is used or refused with an InputError in words: nothing else is raised.

MAXPO_EXAMPLES sets the number of examples of each test. With it, an example that takes over 2 seconds of the processor
fails.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from maxpo.config import DataConfig
from maxpo.configure.fields import schema, sections
from maxpo.configure.loading import load_config
from maxpo.configure.writing import to_yaml
from maxpo.data.prompts import load_prompts
from maxpo.data.rows import parse
from maxpo.errors import InputError

DEMO = Path("configs/presets/demo.yaml")
BY_HAND = "MAXPO_EXAMPLES" in os.environ
LONGEST = 20_000
"""Number of characters of a message that somebody may still read."""
many = settings(
    max_examples=int(os.environ.get("MAXPO_EXAMPLES", 150)),
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
SURROGATES = st.characters(categories=["Cs"])
texts = st.text(max_size=12) | st.text(st.characters() | SURROGATES, max_size=4)
numbers = st.sampled_from([0, -1, 1, 3, 10**30, -(10**30), 1e300, 1e-300, 0.5, 2**63, 2**32, 10**9])
words = st.sampled_from([*"null ??? .. / a:b ..x:y countdown math combined auto must cuda eval/pass@4".split(), ""])
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | numbers | texts | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | words, inner, max_size=3), max_leaves=6
)
NASTY = st.sampled_from(
    r"""!!bool maybe|!!int x|!!float ''|!!timestamp x|!!binary ?|!!set {a}|!!omap [a]|!!pairs [a]|!x y|&a [*a]
    |? [a]: b|{? a}|{: }|{"": 1}|- a|a: b: c|>|"|'|%TAG|---|...|1_0|0o7|0x1|1e5|.inf|-.nan|+1|~|[|]
    |${run.name}|${run}|${|${run.zz}|'${oc.env:'|${oc.env:MAXPO_NOT_SET}|${oc.decode:"{"}|${oc.create:[1]}|\${x}
    |{x: ???}|${data.task_args}|${oc.select:run.x}|[[1],[2]]|[[[1]]]|{a: {b: {c: [1]}}}|{a: 1, a: 2}
    |"\ud800"|"a\0b"|"\e[31m" """.split("|")
).map(str.strip)
written = NASTY | values.map(lambda value: yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()) | texts
keys = (
    st.sampled_from([*schema(), *sections(), "data.task_args.x", "reward.args.numeric", "no.key", "", "base"]) | texts
)


@contextmanager
def quick() -> Iterator[None]:
    """Fail, in a run by hand, if the block takes more than 2 seconds of the processor."""
    begin = time.process_time()
    yield
    assert not BY_HAND or time.process_time() - begin < 2


def load(file: Path, overrides: list[str]) -> None:
    """Load settings. They are written and read again if they are good, and refused in words if not."""
    with quick():
        _load(file, overrides)


def _load(file: Path, overrides: list[str]) -> None:
    try:
        loaded = load_config([file], overrides)
    except InputError as error:
        said = str(error)
        said.encode()
        assert said and len(said) < LONGEST
        return
    again = file.parent / "again.yaml" if file is not DEMO else None
    text = to_yaml(loaded)
    if again is not None:
        again.write_text(text, encoding="utf-8")
        load_config([again], [])


@pytest.mark.slow
@many
@given(st.lists(st.builds("{}={}".format, keys, written) | texts, min_size=1, max_size=4))
def test_any_overrides(overrides: list[str]) -> None:
    load(DEMO, overrides)


@pytest.mark.slow
@many
@given(text=written | st.text() | st.lists(st.builds("{}: {}\n".format, keys, written), max_size=5).map("".join))
def test_any_file_of_settings(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    load(file, [])


@pytest.mark.slow
@many
@given(
    tree=st.dictionaries(
        st.sampled_from([*{key.partition(".")[0] for key in schema()}]),
        st.dictionaries(st.sampled_from([*{key.rpartition(".")[2] for key in schema()}]) | texts, values, max_size=4),
        max_size=4,
    )
)
def test_any_tree_of_settings(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "tree.yaml"
    good = yaml.safe_load(DEMO.read_text())
    merged = {section: good.get(section, {}) | tree.get(section, {}) for section in {*good, *tree}}
    file.write_bytes(yaml.safe_dump(merged, allow_unicode=True).encode(errors="surrogatepass"))
    load(file, [])


def rows_of(file: Path, **keys: Any) -> None:
    """Read a file of rows twice, as at the start and in the run, and take every prompt."""
    config = DataConfig(train_file=str(file), **keys)
    with quick():
        _read(file, config)


def _read(file: Path, config: DataConfig) -> None:
    try:
        train, held_out = load_prompts(
            config, seed=0, eval_size=0, encode=lambda text: list(text.encode()), chat=lambda m: (str(m), [1])
        )
        assert list(train) and not held_out
    except InputError as error:
        said = str(error)
        said.encode()
        assert file.name in said and len(said) < LONGEST


row = st.fixed_dictionaries(
    {"prompt": values | texts | st.just([{"role": "user", "content": "x"}])},
    optional={"answer": values, "data_source": values, "reward_model": values, "extra": values},
)


@pytest.mark.slow
@many
@given(content=st.binary(max_size=300) | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_as_data(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("any.jsonl", "any.parquet"):
        file = tmp_path_factory.getbasetemp() / name
        file.write_bytes(content)
        rows_of(file)
        rows_of(file, max_bad_rows=100)


@pytest.mark.slow
@many
@given(
    rows=st.lists(row | values, min_size=1, max_size=4),
    indent=st.sampled_from([None, None, None, 2]),
    whole=st.integers(0, 9).map(lambda n: n == 0),
    at=st.integers(0, 400),
    byte=st.none() | st.integers(0, 255),
)
def test_mutated_rows(
    rows: list[Any],
    indent: int | None,
    whole: bool,
    at: int,
    byte: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    texts_ = [json.dumps(rows, indent=indent)] if whole else [json.dumps(one, indent=indent) for one in rows]
    content = bytearray("\n".join(texts_).encode(errors="surrogatepass"))
    if byte is not None and at < len(content):
        content[at] = byte
    file = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    file.write_bytes(content)
    rows_of(file)
    rows_of(file, max_bad_rows=100, chat=True, fields={"answer": "extra.a"})


@pytest.mark.slow
@many
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), cut=st.booleans()
)
def test_mutated_parquet(changes: list[tuple[int, int]], cut: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("pyarrow")
    content = bytearray(Path("configs/data/gsm8k_sample_test.parquet").read_bytes())
    for position, byte in changes:
        content[position % len(content)] = byte
    file = tmp_path_factory.getbasetemp() / "mutated.parquet"
    file.write_bytes(content[: changes[0][0] % len(content)] if cut else content)
    rows_of(file, max_prompt_tokens=10**6)


@many
@given(value=values | row, fields=st.dictionaries(st.sampled_from(["prompt", "answer", "source"]), texts, max_size=2))
def test_any_row(value: object, fields: dict[str, str]) -> None:
    try:
        with quick():
            parse(value, fields)
    except ValueError as error:
        assert str(error)
