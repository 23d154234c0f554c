"""Checkpoints in remote places: in memory, in a folder, and in a bucket of a local S3 server."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer

from maxpo.checkpoint import CheckpointError, Checkpoints, verify
from maxpo.errors import InputError
from maxpo.remote import WAITS_S, RemoteStore, RemoteStoreError

ODD = "policy/ä [1]*?.bin"
FILES = {"learner/w.bin", "learner/empty", ODD, "state.json", "manifest.json"}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write(folder: Path, step: int, text: str = "weights") -> Path:
    """A local checkpoint."""

    def fill(partial: Path) -> None:
        (partial / "learner").mkdir()
        (partial / "policy").mkdir()
        (partial / "learner/w.bin").write_bytes(text.encode() + bytes(range(256)) * 500)
        (partial / "learner/empty").write_bytes(b"")
        (partial / ODD).write_text(text)

    return Checkpoints(folder, keep_last=100).write(step, {"step": step}, {}, fill)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a local folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Place:
    """A URL that nothing has been written to, and a look at it by the driver alone."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url, self.options = url, options
        self.waits: list[float] = []
        self._store = self.another()
        self.fs, self.root = self._store._fs, self._store._root

    def store(self) -> RemoteStore:
        """The same one each time: it remembers nothing, and an S3 client takes a third of a second to make."""
        return self._store

    def another(self) -> RemoteStore:
        return RemoteStore(self.url, self.options, wait=self.waits.append)

    def faulty(self, before: Callable[[str, str], None]) -> RemoteStore:
        """A store with `before(operation, path)` called first, which may raise."""
        store = copy.copy(self._store)
        store._fs = Faulty(store._fs, before)
        return store

    def files(self) -> set[str]:
        self.fs.invalidate_cache()
        return {path.removeprefix(self.root).lstrip("/") for path in self.fs.find(self.root)}

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(f"{self.root}/{name}")

    def put(self, name: str, data: bytes = b"x") -> None:
        self.fs.pipe_file(f"{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        self.fs.rm_file(f"{self.root}/{name}")


class Faulty:
    """A driver that removes files one by one, COMMIT as the last, with a hook before each call."""

    def __init__(self, fs: Any, before: Callable[[str, str], None]) -> None:
        self.fs, self.before = fs, before

    def __getattr__(self, name: str) -> Any:
        original = getattr(self.fs, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.before(name, str(args[0]) if args else "")
            return original(*args, **kwargs)

        return call

    def rm(self, path: str, recursive: bool) -> None:
        for file in sorted(self.fs.find(path), reverse=True):
            self.rm_file(file)
        self.fs.rm(path, recursive=recursive)


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


def dying(fatal: int) -> Callable[[str, str], None]:
    """Lets `fatal` writes through."""
    writes = itertools.count()

    def before(operation: str, path: str) -> None:
        if operation in ("put_file", "pipe_file", "rm_file") and next(writes) >= fatal:
            raise Killed

    return before


def failing(operation: str, times: int, error: BaseException) -> Callable[[str, str], None]:
    """Fails in the first `times` calls of an operation."""
    calls = itertools.count()

    def before(name: str, path: str) -> None:
        if name == operation and next(calls) < times:
            raise error

    return before


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "endpoint_url": f"http://{host}:{port}",
        "key": "dummy",
        "secret": "dummy",
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    fsspec.filesystem("s3", **options, skip_instance_cache=True).mkdir("bucket")
    yield options
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    unique = f"{tmp_path.parent.name}-{tmp_path.name}"
    if request.param == "file":
        return Place(f"file://{tmp_path}/remote/run", {})
    if request.param == "memory":
        return Place(f"memory://{unique}/run/", {})
    return Place(f"s3://bucket/{unique}/run", request.getfixturevalue("s3"))


def test_a_round_trip_is_exact_and_seen_by_others_at_once(place: Place, tmp_path: Path) -> None:
    writer, reader = place.another(), place.another()
    assert writer._fs is not reader._fs  # as in two processes
    assert reader.steps() == []
    first, second = write(tmp_path / "a", 5, "five"), write(tmp_path / "a", 1234567, "more")
    writer.upload(second)
    assert reader.steps() == [1234567]
    writer.upload(first)
    assert reader.steps() == writer.steps() == [5, 1234567]
    assert place.files() == {
        "LATEST",
        *(f"step_000005/{name}" for name in FILES | {"COMMIT"}),
        *(f"step_1234567/{name}" for name in FILES | {"COMMIT"}),
    }
    assert place.read("LATEST") == b"step_000005\n"
    for step, source in ((5, first), (1234567, second)):
        folder = reader.download(step, tmp_path / "b")
        assert folder == tmp_path / "b" / source.name
        assert verify(folder)["step"] == step
        assert content(folder) == content(source)
    assert {p.name for p in (tmp_path / "b").iterdir()} == {first.name, second.name}
    writer.prune([5])
    assert reader.steps() == [5]
    assert place.waits == []


def test_the_marker_comes_last_and_only_what_is_small_goes_through_memory(place: Place, tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    store = place.faulty(lambda operation, path: calls.append((operation, path.rpartition("/")[2])))
    store.upload(write(tmp_path, 1))
    own = ["manifest.json", "COMMIT", "LATEST"]
    assert calls[-3:] == [("pipe_file", name) for name in own]
    store.download(1, tmp_path / "b")
    assert {name for operation, name in calls if operation in ("pipe_file", "cat_file", "pipe", "cat", "open")} == set(
        own
    )


def check_all(place: Place, tmp_path: Path, texts: dict[int, set[str]]) -> list[int]:
    """What a later process sees: every step that is there loads, as one of the texts it was written with."""
    steps = place.store().steps()
    for step in steps:
        folder = place.store().download(step, tmp_path / "back")
        assert (folder / ODD).read_text() in texts[step]
    return steps


def test_an_upload_that_dies_leaves_the_others_and_nothing_half_there(place: Place, tmp_path: Path) -> None:
    """At every write, once each (in a bucket every third): step 1 is there, and step 2 with another content."""
    place.store().upload(write(tmp_path / "c", 1, "one"))
    seen: set[tuple[int, ...]] = set()
    for fatal in range(0, 100, 3 if place.url.startswith("s3:") else 1):
        old, new = f"old {fatal}", f"new {fatal}"
        place.store().upload(write(tmp_path / "c", 2, old))
        try:
            place.faulty(dying(fatal)).upload(write(tmp_path / "c", 2, new))
        except Killed:
            seen.add(tuple(check_all(place, tmp_path, {1: {"one"}, 2: {old if fatal == 0 else new}})))
            continue
        break
    assert fatal >= 2 * len(FILES | {"COMMIT"}) + 1
    assert seen == {(1,), (1, 2)}
    assert check_all(place, tmp_path, {1: {"one"}, 2: {new}}) == [1, 2]
    assert {name for name in place.files() if name.startswith("step_000002")} == {
        f"step_000002/{name}" for name in FILES | {"COMMIT"}
    }


def test_a_prune_that_dies_leaves_whole_checkpoints(place: Place, tmp_path: Path) -> None:
    sources = {step: write(tmp_path / "c", step, f"text {step}") for step in (1, 2)}
    texts = {step: {f"text {step}"} for step in sources}
    seen: set[tuple[int, ...]] = set()
    for fatal in range(0, 100, 2 if place.url.startswith("s3:") else 1):
        for step in {1, 2}.difference(place.store().steps()):
            place.store().upload(sources[step])
        try:
            place.faulty(dying(fatal)).prune({2})
        except Killed:
            seen.add(tuple(check_all(place, tmp_path, texts)))
            place.store().prune({2})
            assert {name.partition("/")[0] for name in place.files()} == {"LATEST", "step_000002"}
            continue
        break
    assert fatal == len(FILES | {"COMMIT"})
    assert seen == {(1, 2), (2,)}
    assert check_all(place, tmp_path, texts) == [2]


@pytest.mark.parametrize("place", ["memory", "file"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "message", "listed"),
    [
        (lambda p: p.put("step_000001/learner/w.bin", b"Weights"), "step_000001/learner/w.bin: 7 bytes, changed", True),
        (lambda p: p.remove("step_000001/learner/w.bin"), "step_000001/learner/w.bin: missing", True),
        (lambda p: p.put("step_000001/manifest.json", b"{}"), "manifest.json: lists no files", False),
        (lambda p: p.put("step_000001/manifest.json", b"{"), "manifest.json: cannot be read", False),
        (
            lambda p: p.put("step_000001/manifest.json", p.read("step_000001/manifest.json") + b"\n"),
            "step_000001/COMMIT: does not match manifest.json",
            False,
        ),
        (lambda p: p.remove("step_000001/manifest.json"), "step_000001/manifest.json: missing", False),
        (lambda p: p.put("step_000001/COMMIT", b""), "step_000001/COMMIT: does not match", False),
        (lambda p: p.remove("step_000001/COMMIT"), "step_000001/COMMIT: missing", False),
    ],
)
def test_damage_is_named_and_nothing_local_is_touched(
    damage: Callable[[Place], None], message: str, listed: bool, place: Place, tmp_path: Path
) -> None:
    local = tmp_path / "c"
    place.store().upload(write(local, 1))
    damage(place)
    (local / "step_000001/learner/w.bin").write_text("a damaged one here too")
    before = content(local)
    assert place.store().steps() == ([1] if listed else [])
    with pytest.raises(CheckpointError) as caught:
        place.store().download(1, local)
    assert message in str(caught.value)
    assert str(caught.value).startswith(place.url.rstrip("/"))
    assert content(local) == before
    assert [p.name for p in local.iterdir() if p.name.startswith(".")] == []
    assert place.waits == []


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_damage_in_a_bucket_is_named(place: Place, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        place.store().upload(write(tmp_path / "c", step))
    place.put("step_000001/learner/w.bin", b"Weights")
    place.remove("step_000002/learner/w.bin")
    place.put("step_000003/COMMIT", place.read("step_000004/COMMIT"))
    place.remove("step_000004/manifest.json")
    before = content(tmp_path / "c")
    assert place.store().steps() == [1, 2]
    for step, message in enumerate(("w.bin: 7 bytes", "w.bin: missing", "COMMIT: does not", "manifest.json: mis"), 1):
        with pytest.raises(CheckpointError, match=rf"^s3://.*/step_00000{step}/.*{message}"):
            place.store().download(step, tmp_path / "c")
    assert content(tmp_path / "c") == before


def test_a_damaged_local_one_is_replaced_and_leftovers_do_not_matter(place: Place, tmp_path: Path) -> None:
    local = tmp_path / "c"
    good = content(write(local, 1))
    place.store().upload(local / "step_000001")
    (local / "step_000001/learner/w.bin").unlink()
    (local / "step_000001/more").write_text("not in the manifest")
    (local / ".step_000001.partial").mkdir()
    (local / ".step_000001.partial/leftover").write_text("of a download that died")
    assert content(place.store().download(1, local)) == good
    assert {p.name for p in local.iterdir()} == {"LATEST", "step_000001"}


def test_prune_removes_what_is_ours_and_not_wanted_and_nothing_else(place: Place, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 7, 8, 100000, 1000000):
        place.store().upload(write(tmp_path / "c", step))
    for step in (2, 3, 1000000):  # never finished: two old ones, and the newest, which may be on its way
        place.remove(f"step_{step:06d}/COMMIT")
    place.put("step_000007/COMMIT")  # damaged ones: to keep, and not
    place.put("step_000008/COMMIT")
    others = ["notes.txt", "step_7/a", "step_0000004/a", "step_x/a", "step_000001.txt", "more/step_000001/COMMIT"]
    others.append("step_000001-copy/COMMIT")
    for name in others:
        place.put(name)
    place.fs.pipe_file(f"{place.root}-2/step_000001/COMMIT", b"x")
    place.store().prune([2, 4, 7])
    assert place.store().steps() == [4]
    kept = (f"{step}/{name}" for step in ("step_000004", "step_000007") for name in FILES | {"COMMIT"})
    assert place.files() == {"LATEST", *others, *kept, *(f"step_1000000/{name}" for name in FILES)}
    assert place.fs.cat_file(f"{place.root}-2/step_000001/COMMIT") == b"x"
    if place.url.startswith("file:"):  # nor empty folders
        assert not (Path(place.root) / "step_000001").exists()


class DriverError(Exception):
    """Of the kind that drivers let through from their libraries."""


def operate(store: RemoteStore, operation: str, tmp_path: Path) -> None:
    if operation == "steps":
        assert store.steps() == [1, 2]
    elif operation == "upload":
        store.upload(write(tmp_path / "c", 3))
    elif operation == "download":
        store.download(1, tmp_path / "b")
    else:
        store.prune({1})


OPERATIONS = [
    ("steps", "ls", "listing checkpoints"),
    ("steps", "cat_file", "listing checkpoints"),
    ("upload", "put_file", "uploading step_000003"),
    ("upload", "pipe_file", "uploading step_000003"),
    ("download", "get_file", "downloading step_000001"),
    ("prune", "rm_file", "removing old checkpoints"),
]


@pytest.fixture
def filled(tmp_path: Path) -> Place:
    """Steps 1 and 2 in a folder."""
    place = Place(f"file://{tmp_path}/remote", {})
    for step in (1, 2):
        place.store().upload(write(tmp_path / "c", step))
    return place


@pytest.mark.parametrize("error", [OSError(5, "hiccup"), TimeoutError(), DriverError("hiccup")])
@pytest.mark.parametrize(("operation", "call", "doing"), OPERATIONS)
def test_errors_that_pass_are_tried_three_times(
    operation: str, call: str, doing: str, error: Exception, filled: Place, tmp_path: Path
) -> None:
    with pytest.raises(RemoteStoreError) as caught:
        operate(filled.faulty(failing(call, 3, error)), operation, tmp_path)
    assert str(caught.value) == f"{filled.url}: {doing} failed: {str(error) or 'TimeoutError'}"
    assert filled.waits == list(WAITS_S)
    filled.waits.clear()
    operate(filled.faulty(failing(call, 2, error)), operation, tmp_path)
    assert filled.waits == list(WAITS_S)
    expected = {"steps": [1, 2], "upload": [1, 2, 3], "download": [1, 2], "prune": [1]}[operation]
    assert filled.store().steps() == expected


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), IsADirectoryError(21, "denied"), ValueError("denied")]
)
@pytest.mark.parametrize(("operation", "call", "doing"), OPERATIONS)
def test_errors_that_stay_are_not_tried_again(
    operation: str, call: str, doing: str, error: Exception, filled: Place, tmp_path: Path
) -> None:
    with pytest.raises(RemoteStoreError, match=rf"file://.*: {doing} failed: .*denied"):
        operate(filled.faulty(failing(call, 1, error)), operation, tmp_path)
    assert filled.waits == []


def test_an_error_within_a_removal_leaves_no_rest(filled: Place) -> None:
    """The newest one, whose COMMIT has gone already, is finished in the second try."""
    calls = itertools.count()

    def before(operation: str, path: str) -> None:
        if operation == "rm_file" and next(calls) == 3:
            raise OSError(5, "hiccup")

    filled.faulty(before).prune({1})
    assert filled.waits == [WAITS_S[0]]
    assert {name.partition("/")[0] for name in filled.files()} == {"LATEST", "step_000001"}


def test_an_unreadable_marker_is_not_a_missing_one(filled: Place, tmp_path: Path) -> None:
    def before(operation: str, path: str) -> None:
        if operation == "cat_file" and path.endswith("step_000001/COMMIT"):
            raise PermissionError(13, "denied")

    with pytest.raises(RemoteStoreError, match="denied"):
        filled.faulty(before).prune({1, 2})
    with pytest.raises(RemoteStoreError, match="denied"):
        filled.faulty(before).download(1, tmp_path / "b")
    assert filled.store().steps() == [1, 2]


def test_a_missing_bucket_and_a_server_that_is_gone(s3: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1)
    place = Place("s3://no-such-bucket/run", s3)
    with pytest.raises(RemoteStoreError, match=r"s3://no-such-bucket/run: uploading step_000001 failed: .*bucket"):
        place.store().upload(checkpoint)
    assert place.waits == []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = {**s3, "endpoint_url": f"http://127.0.0.1:{unused.getsockname()[1]}"}
        place = Place("s3://bucket/run", {**nobody, "config_kwargs": {"retries": {"max_attempts": 0}}})
        with pytest.raises(RemoteStoreError, match=r"s3://bucket/run: listing checkpoints failed: .*connect"):
            place.store().steps()
    assert place.waits == list(WAITS_S)


NAMES = ["../x", "a/../../x", "..", "/x", "a//x", "./x", "", ".", "a\\x", "a\0x", "COMMIT", "manifest.json", "COMMIT/x"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_escape_are_refused(name: str, filled: Place, tmp_path: Path) -> None:
    manifest = json.loads(filled.read("step_000001/manifest.json"))
    manifest["files"][name] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    text = json.dumps(manifest).encode()
    commit = {"manifest_sha256": hashlib.sha256(text).hexdigest(), "files": len(manifest["files"])}
    filled.put("step_000001/manifest.json", text)
    filled.put("step_000001/COMMIT", json.dumps(commit).encode() + b"\n")
    filled.put("x")
    with pytest.raises(CheckpointError, match=r"step_000001/manifest.json: lists .*, which is no name"):
        filled.store().download(1, tmp_path / "b/checkpoints")
    assert not (tmp_path / "b").exists()
    assert filled.store().steps() == [2]
    (tmp_path / "c/step_000001/manifest.json").write_bytes(text)
    before = filled.files()
    with pytest.raises(CheckpointError, match=r"step_000001/manifest.json: lists .*, which is no name"):
        filled.store().upload(tmp_path / "c/step_000001")
    assert filled.files() == before
    assert filled.waits == []


def test_a_plain_name_passes_where_the_others_are_refused(filled: Place, tmp_path: Path) -> None:
    """The forged COMMIT above is a valid one: the name alone decides."""
    manifest = json.loads(filled.read("step_000001/manifest.json"))
    manifest["files"]["a/..x"] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    text = json.dumps(manifest).encode()
    commit = {"manifest_sha256": hashlib.sha256(text).hexdigest(), "files": len(manifest["files"])}
    filled.put("step_000001/manifest.json", text)
    filled.put("step_000001/COMMIT", json.dumps(commit).encode() + b"\n")
    filled.put("step_000001/a/..x")
    assert (filled.store().download(1, tmp_path / "b") / "a/..x").read_bytes() == b"x"


@pytest.mark.parametrize(("url", "driver", "extra"), [("s3://b/p", "s3fs", "s3"), ("gs://b/p", "gcsfs", "gcs")])
def test_a_missing_driver_is_one_clear_error(
    url: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.delitem(_registry, url[:2], raising=False)
    with pytest.raises(InputError) as caught:
        RemoteStore(url, {})
    expected = f"checkpoint.remote: '{url}' needs a package that is not installed: pip install 'maxpo[{extra}]'"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("nothing://b/p", {}, "cannot be used: Protocol not known: nothing"),
        ("bucket/prefix", {}, "must be protocol://bucket/prefix"),
        ("memory://run*", {}, "without"),
        ("simplecache::memory://run", {}, "without"),
        ("memory://", {}, "names no bucket or folder"),
        ("s3://b/p", {"max_concurrency": 0}, "cannot be used: .*max_concurrency"),
    ],
)
def test_urls_and_options_that_cannot_be_used(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"checkpoint.remote: .*{message}") as caught:
        RemoteStore(url, options)
    assert repr(url) in str(caught.value)
