"""Files of rows, read one row at a time. Only the start of each row is in memory, or the Arrow table of parquet.

`pyarrow` and `datasets` (the extra `data`) are imported when a file needs them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from maxpo.errors import DataError
from maxpo.wording import listed, shown

_BATCH = 1000
"""Number of rows that are converted to Python objects at a time."""

_HEAD = 1 << 20
"""Number of bytes at the start of a file that show its layout."""


class Table(Protocol):
    """Rows that can be read in order, and again one by one."""

    def scan(self) -> Iterator[tuple[int, str, object]]:
        """Yield for each row its key, its name in messages, and its content or the ValueError of a bad line."""
        ...

    def read(self, key: int) -> object:
        """Return the row with this key."""
        ...


class ArrowTable(Protocol):
    """An Arrow table, as far as it is used here."""

    def to_pylist(self) -> list[object]:
        """Return the rows as Python objects."""
        ...


class JsonLines:
    """A file with a JSON value on each line. Blank lines do not count. The key of a row is its first byte."""

    def __init__(self, path: Path) -> None:
        """Open the file, which stays open because rows are read during the run."""
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    def scan(self) -> Iterator[tuple[int, str, object]]:
        """See `Table`."""
        start, seen = 0, False
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                try:
                    row = _parse(line)
                except ValueError as error:
                    if not seen:
                        self._check_layout(start)
                    row = error
                if not seen and isinstance(row, list):
                    self._check_layout(start)
                seen = True
                yield start, f"line {number}", row
            start += len(line)

    def read(self, key: int) -> object:
        """See `Table`."""
        self._file.seek(key)
        return _parse(self._file.readline())

    def _check_layout(self, start: int) -> None:
        """Raise DataError if the value that begins the file is an array of rows, or spans lines. Keep the position."""
        position = self._file.tell()
        self._file.seek(start)
        head = self._file.read(_HEAD).decode("utf-8", errors="replace").lstrip()
        self._file.seek(position)
        layout = "an array" if head.startswith("[") else "a value that spans several lines"
        try:
            _, end = json.JSONDecoder().raw_decode(head)
            whole = "\n" not in head[:end].strip()
        except (ValueError, RecursionError):
            whole = True
        if head.startswith("[") or not whole:
            raise DataError(
                f"{self._path} begins with {layout}, but JSON lines are wanted: one row, such as "
                '{"prompt": "...", "answer": "..."}, on each line. Convert it with\n'
                f"  jq -c '.[]?' {self._path} > rows.jsonl   (an array)\n"
                f"  jq -c . {self._path} > rows.jsonl        (values that span lines)"
            )


def _parse(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except RecursionError as error:
        raise ValueError("not JSON (nested too deeply)") from error


class ArrowRows:
    """Rows of Arrow tables. The key of a row is its number, from 0."""

    def __init__(self, length: int, part: Callable[[int, int], ArrowTable]) -> None:
        """Keep the number of rows, and the function that returns rows `start` to `stop - 1` as an Arrow table."""
        self._length, self._part = length, part

    def scan(self) -> Iterator[tuple[int, str, object]]:
        """See `Table`."""
        for start in range(0, self._length, _BATCH):
            stop = min(start + _BATCH, self._length)
            try:
                rows = self._part(start, stop).to_pylist()
            # One value that cannot be converted fails the batch, with any kind of error.
            except Exception:
                rows = [self._row_or_error(key) for key in range(start, stop)]
            for offset, row in enumerate(rows):
                yield start + offset, f"row {start + offset}", row

    def read(self, key: int) -> object:
        """See `Table`."""
        row = self._row_or_error(key)
        if isinstance(row, ValueError):
            raise row
        return row

    def _row_or_error(self, key: int) -> object:
        try:
            return self._part(key, key + 1).to_pylist()[0]
        except Exception as error:
            return ValueError(f"the row cannot be read: {type(error).__name__}: {error}")


def open_table(source: str, split: str | None, name: str | None, columns: Mapping[str, Sequence[str]]) -> Table:
    """Return the rows of a file, of a folder written by `save_to_disk`, or of a dataset id in the local cache.

    Args:
        source: File, folder or id. A file `*.parquet` is parquet. Any other file has a JSON value on each line.
        split: Split of a dataset, not needed if there is only one.
        name: Configuration of a dataset id.
        columns: Columns of prompt, answer and source. No others are read from columnar files.

    Raises:
        DataError: The source does not exist or cannot be read, or its library is not installed.
    """
    path = Path(source)
    if path.is_file() or path.suffix in (".jsonl", ".json", ".parquet"):
        if split is not None or name is not None:
            raise DataError(f"{source}: a file has no split and no name: leave them out")
        return _parquet(path, columns) if path.suffix == ".parquet" else JsonLines(path)
    return _dataset(source, split, name, columns)


def _library(name: str) -> Any:
    return importlib.import_module(name)


def _parquet(path: Path, columns: Mapping[str, Sequence[str]]) -> Table:
    try:
        parquet = _library("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{path}: parquet needs pyarrow: pip install 'maxpo[data]'") from error
    try:
        file = parquet.ParquetFile(path)
        table = file.read(columns=_known(str(path), file.schema_arrow.names, columns))
    except DataError:
        raise
    # A damaged file raises errors of the system, of Arrow and of Python.
    except Exception as error:
        raise DataError(f"{path} cannot be read as parquet: {shown(str(error), 300)}") from error
    return ArrowRows(table.num_rows, lambda start, stop: table.slice(start, stop - start))


def _known(source: str, names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the columns to read."""
    for what in ("prompt", "answer"):
        if not set(columns[what]) & set(names):
            raise DataError(
                f"{source} has no column {' or '.join(columns[what])}, it has {listed(sorted(names))}: say with "
                f"data.fields which one holds the {what}, such as {{{what}: {listed(names[:1]) or 'NAME'}}}"
            )
    wanted = {name for options in columns.values() for name in options}
    return [name for name in names if name in wanted]


def _dataset(source: str, split: str | None, name: str | None, columns: Mapping[str, Sequence[str]]) -> Table:
    try:
        library = _library("datasets")
    except ImportError as error:
        raise DataError(
            f"{source} is no file; a folder or a dataset id needs the datasets library: pip install 'maxpo[data]'"
        ) from error
    path = Path(source)
    try:
        if path.is_dir():
            dataset = library.load_from_disk(source)
        else:
            with _offline(library):
                dataset = library.load_dataset(source, name)
    # The library raises many kinds of errors for a folder or cache that it cannot read.
    except Exception as error:
        where = "the folder cannot be loaded: save_to_disk of the datasets library must have written it"
        missing = "is neither a file nor a folder, and no dataset in the local cache (nothing is downloaded)"
        raise DataError(f"{source} {where if path.is_dir() else missing}: {shown(str(error), 300)}") from error
    if isinstance(dataset, library.DatasetDict):
        splits = list(dataset)
        if split is None and len(splits) > 1:
            raise DataError(f"{source} has the splits {listed(splits)}: choose one with `split`")
        if split is not None and split not in splits:
            raise DataError(f"{source}: split = {split} is none of its splits {listed(splits)}")
        dataset = dataset[split or splits[0]]
    elif split is not None:
        raise DataError(f"{source} has no splits: leave `split` out")
    dataset = dataset.select_columns(_known(source, dataset.column_names, columns)).with_format("arrow")
    return ArrowRows(len(dataset), lambda start, stop: dataset[start:stop])


@contextmanager
def _offline(library: Any) -> Generator[None]:
    """Keep the datasets library off the network. It has read its environment variables at import."""
    switches = [library.config, _library("huggingface_hub.constants")]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value
