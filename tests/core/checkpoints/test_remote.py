"""Checkpoints in an object store: in memory, in a folder, and on an S3 server of this process."""

from __future__ import annotations

import json
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import EndpointConnectionError
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer

from maxpo.checkpoints.local import Checkpoints
from maxpo.checkpoints.manifest import verify
from maxpo.checkpoints.remote import WAITS, RemoteStore, RemoteStoreError, _seal
from maxpo.errors import CheckpointError, InputError

WRITES = ("put_file", "pipe_file", "rm_file", "rm")


class Killed(BaseException):
    """This process is gone."""


@dataclass
class Place:
    """A URL, and what was waited for there."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)

    def store(self) -> RemoteStore:
        """Another one each time, as of another process."""
        return RemoteStore(self.url, self.options, wait=self.waits.append)

    @cached_property
    def other(self) -> RemoteStore:
        """One that nothing is injected into."""
        return self.store()

    def write(self, name: str, content: bytes) -> None:
        key = f"{self.other._root}/{name}"
        if not self.url.startswith("s3"):
            self.other._fs.makedirs(key.rpartition("/")[0], exist_ok=True)
        self.other._fs.pipe_file(key, content)

    def read(self, name: str) -> bytes:
        return self.other._fs.cat_file(f"{self.other._root}/{name}")

    def remove(self, name: str) -> None:
        self.other._fs.rm_file(f"{self.other._root}/{name}")

    def names(self) -> set[str]:
        return {key.removeprefix(self.other._root + "/") for key in self.other._fs.find(self.other._root)}

    def moments(self, few: tuple[int, ...]) -> Iterable[int]:
        """After how many writes to die: of all in turn, on the slow server of a few; then of none."""
        return (*few, 99) if self.url.startswith("s3") else range(99)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """Options of a server that has the bucket `bucket`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = s3_options(port)
    assert host == "127.0.0.1"
    s3fs.S3FileSystem(**options, skip_instance_cache=True).mkdir("bucket")
    yield options
    server.stop()


def s3_options(port: int) -> dict[str, Any]:
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "key": "nobody",
        "secret": "nothing",
        "config_kwargs": {"s3": {"addressing_style": "path"}, "retries": {"max_attempts": 1}},
    }


@pytest.fixture(params=("memory", "file", "s3"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    name = uuid.uuid4().hex
    if request.param == "s3":
        return Place(f"s3://bucket/{name}/run", request.getfixturevalue("s3"))
    return Place(f"file://{tmp_path}/{name}/run" if request.param == "file" else f"memory://{name}/run")


@pytest.fixture
def memory() -> Place:
    return Place(f"memory://{uuid.uuid4().hex}/run")


def checkpoint(folder: Path, step: int, text: str = "weights") -> Path:
    def fill(partial: Path) -> Callable[[], None]:
        (partial / "learner").mkdir()
        (partial / "learner" / "w.bin").write_bytes(text.encode() * 1000 + bytes(range(256)))
        (partial / "learner" / "empty").write_bytes(b"")
        return lambda: None

    Checkpoints(folder, keep_last=100).write(step, {"step": step, "text": "ä"}, {}, fill)
    return folder / f"step_{step:06d}"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def failing(store: RemoteStore, method: str, error: BaseException, times: int) -> list[str]:
    """Let the first calls of a method of the driver fail; returns the list of all calls."""
    original, calls = getattr(store._fs, method), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        if len(calls) <= times:
            raise error
        return original(*args, **kwargs)

    setattr(store._fs, method, call)
    return calls


def dying(store: RemoteStore, after: int) -> list[str]:
    """Let the process die in the write that follows `after` others; returns the keys that were written or removed.

    The last write gets half of its content out, as in a folder.
    """
    done: list[str] = []

    def wrap(method: str) -> None:
        original = getattr(store._fs, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= after:
                if method == "pipe_file":
                    original(args[0], args[1][: len(args[1]) // 2])
                raise Killed
            result = original(*args, **kwargs)
            done.append(f"{method} {args[1 if method == 'put_file' else 0]}")
            return result

        setattr(store._fs, method, call)

    for method in WRITES:
        wrap(method)
    return done


def test_there_and_back(place: Place, tmp_path: Path) -> None:
    store = place.store()
    assert store.steps() == []
    first, second = checkpoint(tmp_path / "c", 7, "seven"), checkpoint(tmp_path / "c", 1_000_040, "forty")
    store.upload(first)
    assert place.read("LATEST") == b"step_000007\n"
    store.upload(second)
    assert place.read("LATEST") == b"step_1000040\n"
    assert store.steps() == [7, 1_000_040]
    for step, local in ((7, first), (1_000_040, second)):
        found = place.store().download(step, tmp_path / "d")
        assert found == tmp_path / "d" / local.name
        assert content(found) == content(local)
        assert verify(found)["step"] == step
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["step_000007", "step_1000040"]
    assert place.waits == []


def test_only_the_marker_and_the_lists_go_through_memory(memory: Place, tmp_path: Path) -> None:
    store = memory.store()
    whole: list[str] = []
    for method in ("cat_file", "pipe_file"):
        original = getattr(store._fs, method)

        def call(key: str, *args: Any, original: Any = original) -> Any:
            whole.append(key.rpartition("/")[2])
            return original(key, *args)

        setattr(store._fs, method, call)
    store.upload(checkpoint(tmp_path, 1))
    store.download(1, tmp_path / "d")
    assert set(whole) == {"COMMIT", "LATEST", "manifest.json"}


def test_what_another_process_wrote_is_seen(place: Place, tmp_path: Path) -> None:
    here, there = place.store(), place.store()
    here.upload(checkpoint(tmp_path, 1))
    assert here.steps() == [1]
    there.upload(checkpoint(tmp_path, 2))
    assert here.steps() == [1, 2]
    there.prune([2])
    assert here.steps() == [2]


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
def test_an_upload_that_dies_is_not_there(again: bool, place: Place, tmp_path: Path) -> None:
    """In every write once: the other checkpoint loads, and the one being written is whole or not there."""
    good = content(checkpoint(tmp_path, 1, "first"))
    place.other.upload(tmp_path / "step_000001")
    later = checkpoint(tmp_path, 2, "later")
    older = checkpoint(tmp_path / "older", 2, "older")
    reached = 0
    for after in place.moments((0, 1, 9, 10) if again else (1, 4, 5)):
        if again:
            place.other.upload(older)
        else:
            place.other.prune([1])
            place.other._remove(2)
        store = place.store()
        done = dying(store, after)
        try:
            store.upload(later)
        except Killed:
            reached += 1
        else:
            break
        committed = any(call.startswith("pipe_file") and call.endswith("COMMIT") for call in done)
        untouched = again and not done
        assert place.other.steps() == ([1, 2] if committed or untouched else [1])
        assert content(place.other.download(1, tmp_path / "d")) == good
        if committed or untouched:
            assert content(place.other.download(2, tmp_path / "d")) == content(later if committed else older)
        else:
            with pytest.raises(CheckpointError, match=r"step_000002/(COMMIT|manifest.json): "):
                place.other.download(2, tmp_path / "d")
    assert reached >= (3 + again if place.url.startswith("s3") else 6 + 6 * again)
    assert content(place.other.download(2, tmp_path / "d")) == content(later)
    assert place.read("LATEST") == b"step_000002\n"


def test_a_removal_that_dies_leaves_whole_checkpoints(place: Place, tmp_path: Path) -> None:
    local = {step: checkpoint(tmp_path, step, f"text {step}") for step in (1, 2, 3)}
    reached = 0
    for after in place.moments((0, 4, 5)):
        for step in {1, 2, 3} - set(place.other.steps()):
            place.other.upload(local[step])
        place.remove("step_000001/COMMIT")
        store = place.store()
        dying(store, after)
        try:
            store.prune([3])
        except Killed:
            reached += 1
        else:
            break
        found = place.other.steps()
        assert found in ([3], [2, 3])
        for step in found:
            assert content(place.other.download(step, tmp_path / "d")) == content(local[step])
    assert reached >= (3 if place.url.startswith("s3") else 11)
    assert place.other.steps() == [3]
    assert {name.partition("/")[0] for name in place.names()} == {"step_000003", "LATEST"}


def test_pruning_touches_nothing_else(place: Place, tmp_path: Path) -> None:
    for step in (1, 2, 100_000, 1_000_000):
        place.other.upload(checkpoint(tmp_path, step))
    foreign = {
        "notes.txt",
        "COMMIT",
        "step_000001.txt",
        "step_000004",
        "step_1/COMMIT",
        "step_0000001/COMMIT",
        "step_0000002/COMMIT",
        "step_notes/x",
        ".step_000001.partial/x",
        "old/step_000001/COMMIT",
    }
    for name in foreign:
        place.write(name, b"mine")
    beside = Place(place.url + "-other", place.options)
    beside.other.upload(tmp_path / "step_000001")
    place.write("step_000003/learner/w.bin", b"half, and older than the newest")
    place.write("step_2000000/learner/w.bin", b"half, and newer than the newest")
    place.store().prune([2, 1_000_000])
    assert place.store().steps() == [2, 1_000_000]
    kept = {"step_000002", "step_1000000", "step_2000000", "LATEST"}
    assert {name.partition("/")[0] for name in place.names() - foreign} == kept
    assert {name for name in foreign if place.read(name) == b"mine"} == foreign
    assert beside.other.steps() == [1]
    if place.url.startswith("file"):
        assert not Path(place.url.removeprefix("file://"), "step_000001").exists()


def test_a_driver_that_lists_by_prefix_does_no_harm(memory: Place, tmp_path: Path) -> None:
    local = {step: checkpoint(tmp_path, step) for step in (100_000, 1_000_000)}
    store = memory.store()
    for folder in local.values():
        store.upload(folder)
    find = store._fs.find

    def by_prefix(key: str, **kwargs: Any) -> Any:
        return find(key, **kwargs) if kwargs else [name for name in find(store._root) if name.startswith(key)]

    store._fs.find = by_prefix
    store.upload(local[100_000])
    store.prune([1_000_000])
    assert content(store.download(1_000_000, tmp_path / "d")) == content(local[1_000_000])
    assert {name.partition("/")[0] for name in memory.names()} == {"step_1000000", "LATEST"}


def test_latest_names_one_that_is_there(memory: Place, tmp_path: Path) -> None:
    store = memory.store()
    for step in (10, 30, 20):
        store.upload(checkpoint(tmp_path, step))
    store.prune([20, 30])
    assert memory.read("LATEST") == b"step_000020\n"
    store.prune([30])
    assert memory.read("LATEST") == b"step_000030\n"
    for _ in range(2):
        store.prune([])
        assert memory.names() == set()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: place.write("step_000002/learner/w.bin", b"Weights"), "learner/w.bin: 7 bytes, changed"),
        (lambda place: place.remove("step_000002/learner/w.bin"), "learner/w.bin: missing"),
    ],
    ids=["changed", "missing"],
)
def test_damage_is_named_and_nothing_changes_here(
    damage: Callable[[Place], None], message: str, place: Place, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    checkpoint(folder, 1)
    local = checkpoint(folder, 2)
    place.store().upload(local)
    sound = content(local)
    (local / "learner/w.bin").write_text("damaged here, too")
    before = content(folder)
    (folder / ".step_000002.partial" / "learner" / "stale").mkdir(parents=True)
    (folder / ".step_000002.partial" / "stale").write_text("of a download that died")
    kept = place.read("step_000002/learner/w.bin")
    damage(place)
    with pytest.raises(CheckpointError, match=f"{place.url}/step_000002/{message}"):
        place.store().download(2, folder)
    assert content(folder) == before
    assert sorted(p.name for p in folder.iterdir()) == ["LATEST", "step_000001", "step_000002"]
    place.write("step_000002/learner/w.bin", kept)
    place.store().download(2, folder)
    assert content(local) == sound


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("COMMIT", lambda old: b"", "COMMIT: does not match manifest.json"),
        ("COMMIT", lambda old: old[:-1], "COMMIT: does not match manifest.json"),
        ("COMMIT", lambda old: old.replace(b'"files": 3', b'"files": 4'), "COMMIT: does not match manifest.json"),
        ("COMMIT", None, "COMMIT: missing"),
        ("manifest.json", lambda old: old + b"\n", "COMMIT: does not match manifest.json"),
        ("manifest.json", lambda old: old[:-5], "manifest.json: cannot be read"),
        ("manifest.json", lambda old: b'{"files": "abc"}', "manifest.json: cannot be read"),
        ("manifest.json", None, "manifest.json: missing"),
    ],
)
def test_a_marker_of_another_manifest_does_not_count(
    name: str, change: Callable[[bytes], bytes] | None, message: str, memory: Place, tmp_path: Path
) -> None:
    memory.store().upload(checkpoint(tmp_path, 1))
    memory.store().upload(checkpoint(tmp_path, 2))
    old = memory.read(f"step_000002/{name}")
    if change is None:
        memory.remove(f"step_000002/{name}")
    else:
        assert change(old) != old
        memory.write(f"step_000002/{name}", change(old))
    assert memory.store().steps() == [1]
    with pytest.raises(CheckpointError, match=f"{memory.url}/step_000002/{message}"):
        memory.store().download(2, tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []


ESCAPES = ("../x", "/x", "a/../../x", "a/../x", "..", ".", "", "a//x", "./x", "x/", "manifest.json", "COMMIT")


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_the_folder_are_refused(name: str, memory: Place, tmp_path: Path) -> None:
    local = checkpoint(tmp_path / "c", 1)
    memory.store().upload(local)
    manifest = json.loads((local / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": "0" * 64}
    bad = json.dumps(manifest).encode()
    memory.write("step_000001/manifest.json", bad)
    memory.write("step_000001/COMMIT", _seal(bad, len(manifest["files"])))
    store = memory.store()
    read = failing(store, "get_file", Killed(), 1)
    with pytest.raises(CheckpointError, match=r"step_000001/manifest.json: lists a file under a name"):
        store.download(1, tmp_path / "d")
    assert read == []
    assert store.steps() == []
    (local / "manifest.json").write_bytes(bad)
    before = memory.names()
    with pytest.raises(CheckpointError, match="lists a file under a name that is not allowed"):
        store.upload(local)
    assert memory.names() == before


def lost() -> Exception:
    return EndpointConnectionError(endpoint_url="http://127.0.0.1")


@pytest.mark.parametrize("error", [OSError(5, "broken pipe"), TimeoutError(), lost()], ids=lambda e: type(e).__name__)
def test_a_failing_store_is_tried_three_times(error: Exception, memory: Place, tmp_path: Path) -> None:
    local = checkpoint(tmp_path, 1)
    store = memory.store()
    calls = failing(store, "put_file", error, 2)
    store.upload(local)
    assert memory.waits == list(WAITS)
    assert len(calls) == 2 + len(content(local))
    assert content(memory.store().download(1, tmp_path / "d")) == content(local)

    for method, operation, act in (
        ("put_file", "uploading step_000001", lambda s: s.upload(local)),
        ("get_file", "downloading step_000001", lambda s: s.download(1, tmp_path / "e")),
        ("ls", "listing checkpoints", lambda s: s.steps()),
        ("rm_file", "removing old checkpoints", lambda s: s.prune([])),
    ):
        if method != "put_file":
            memory.store().upload(local)
        memory.waits.clear()
        store = memory.store()
        calls = failing(store, method, error, 3)
        with pytest.raises(RemoteStoreError) as raised:
            act(store)
        assert str(raised.value) == f"{memory.url}: {operation} failed: {str(error) or 'TimeoutError'}"
        assert (len(calls), memory.waits) == (3, list(WAITS))


def test_a_removal_that_failed_half_way_is_finished(memory: Place, tmp_path: Path) -> None:
    for step in (1, 2):
        memory.other.upload(checkpoint(tmp_path, step))
    store = memory.store()
    original, failed = store._fs.rm_file, []

    def rm_file(key: str) -> None:
        if not key.endswith("COMMIT") and not failed:
            failed.append(key)
            raise OSError("gone")
        original(key)

    store._fs.rm_file = rm_file
    store.prune([1])
    assert len(failed) == 1
    assert {name.partition("/")[0] for name in memory.names()} == {"step_000001", "LATEST"}


def test_a_committed_checkpoint_is_not_written_again_for_its_pointer(memory: Place, tmp_path: Path) -> None:
    store = memory.store()
    original, failed = store._fs.pipe_file, []

    def pipe_file(key: str, value: bytes) -> None:
        if key.endswith("LATEST") and len(failed) < 2:
            failed.append(key)
            raise OSError("gone")
        original(key, value)

    store._fs.pipe_file = pipe_file
    puts = failing(store, "put_file", OSError(), 0)
    local = checkpoint(tmp_path, 1)
    store.upload(local)
    assert len(puts) == len(content(local))
    assert memory.read("LATEST") == b"step_000001\n"


@pytest.mark.parametrize(
    "error",
    [PermissionError("denied"), FileNotFoundError("no bucket"), OSError("Forbidden: x"), ValueError("unknown option")],
    ids=lambda e: type(e).__name__,
)
def test_a_refusal_is_final(error: Exception, memory: Place, tmp_path: Path) -> None:
    store = memory.store()
    calls = failing(store, "put_file", error, 1)
    with pytest.raises(RemoteStoreError, match=f"{memory.url}: uploading step_000001 failed: {error}"):
        store.upload(checkpoint(tmp_path, 1))
    assert (len(calls), memory.waits) == (1, [])


def test_a_bucket_that_does_not_exist_is_an_error(s3: dict[str, Any], tmp_path: Path) -> None:
    place = Place("s3://misspelt/run", s3)
    with pytest.raises(RemoteStoreError, match=r"s3://misspelt/run: listing checkpoints failed: .*bucket does not"):
        place.store().steps()
    with pytest.raises(RemoteStoreError, match=r"s3://misspelt/run: uploading step_000001 failed: .*bucket does not"):
        place.store().upload(checkpoint(tmp_path, 1))
    assert place.waits == []


def test_a_server_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        place = Place("s3://bucket/run", s3_options(unused.getsockname()[1]))
        with pytest.raises(RemoteStoreError, match="s3://bucket/run: listing checkpoints failed: Could not connect"):
            place.store().steps()
    assert place.waits == list(WAITS)


def test_a_folder_that_is_no_checkpoint_is_not_uploaded(memory: Place, tmp_path: Path) -> None:
    local = checkpoint(tmp_path, 1)
    (tmp_path / "step_000002").mkdir()
    for folder in (tmp_path / "step_000002", tmp_path / "step_000003", local.rename(tmp_path / "step_one")):
        with pytest.raises(CheckpointError, match=f"{folder}: not a checkpoint"):
            memory.store().upload(folder)
    assert memory.names() == set()


def test_checkpoints_are_not_uploaded_onto_themselves(tmp_path: Path) -> None:
    local = checkpoint(tmp_path, 1)
    before = content(tmp_path)
    with pytest.raises(InputError, match="is the folder of the checkpoints themselves"):
        RemoteStore(f"file://{tmp_path}/", {}).upload(local)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("url", "package", "message"),
    [
        ("s3://bucket/run", "s3fs", r"s3://bucket/run is not installed: pip install 'maxpo\[s3\]'"),
        ("gs://bucket/run", "gcsfs", r"gs://bucket/run is not installed: pip install 'maxpo\[gcs\]'"),
        ("abfs://bucket/run", "adlfs", "abfs://bucket/run is not installed: .*adlfs"),
    ],
)
def test_a_missing_driver_is_named(url: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    with pytest.raises(InputError, match=f"^checkpoint.remote: the driver for {message}"):
        RemoteStore(url, {})


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("nowhere://x/y", {}, "nowhere://x/y cannot be used: Protocol not known: nowhere"),
        ("/some/folder", {}, "/some/folder is not a URL such as s3://"),
        ("s3://", {}, "s3:// names no bucket or folder"),
        ("s3://bucket", {"url": "x"}, "s3://bucket cannot be used"),
    ],
)
def test_a_wrong_url_is_named(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^checkpoint.remote: {message}"):
        RemoteStore(url, options)
