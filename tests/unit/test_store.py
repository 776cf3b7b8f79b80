"""The store: whole or not at all, durable before it says so, and nothing outside of its folder."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dicomai.errors import StorageFullError, StoreError, UnreadableError
from dicomai.store import Incoming, Store, checked_uid, instance_key, result_key

KEY = instance_key("1.2", "1.2.3", "1.2.3.4", "ab" * 32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage")


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    return tmp_path / "storage/incoming/receiver"


def test_what_is_received_is_what_is_opened(store: Store, incoming: Path) -> None:
    got = store.receive(b"head", (memoryview(b"data"), b"set"))
    with store.open_incoming(got) as stream:
        assert stream.read() == b"dataset"
    assert got.size == 11
    assert got.beginning == b"dataset"
    store.publish(got, KEY)
    assert store.get(KEY) == b"headdataset"
    store.settle([(got, KEY)])
    assert store.get(KEY) == b"headdataset"
    assert list(incoming.iterdir()) == []


def test_the_digest_is_of_the_data_set_alone(store: Store) -> None:
    digests = {store.receive(head, (b"data set",)).digest for head in (b"one sender", b"another")}
    assert len(digests) == 1
    assert store.receive(b"one sender", (b"other set",)).digest not in digests


def test_a_sender_that_breaks_off_leaves_nothing(store: Store, incoming: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"data"
        raise ConnectionResetError

    with pytest.raises(StoreError):
        store.receive(b"head", parts())
    assert list(incoming.iterdir()) == []


def test_a_full_disk_is_said_to_be_full_and_leaves_nothing(store: Store, incoming: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"data"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFullError, match="free some room"):
        store.receive(b"head", parts())
    assert list(incoming.iterdir()) == []


@pytest.mark.parametrize(
    "uid",
    [
        "",
        ".",
        "..",
        "../1",
        "1/2",
        "1..2",
        ".1",
        "1.",
        "1.2\n",
        "1\x00",
        "1.2 ",
        "1" * 65,
        "1.2.a",
        "/1",
        "\u0661",
        "-1",
    ],
)
def test_what_is_no_uid_is_no_part_of_a_key(uid: str) -> None:
    with pytest.raises(UnreadableError, match="SOPInstanceUID"):
        checked_uid(uid, "SOPInstanceUID")
    for place in range(3):
        uids = ["1.2", "1.3", "1.4"]
        uids[place] = uid
        with pytest.raises(UnreadableError):
            instance_key(uids[0], uids[1], uids[2], "ab" * 32)
    with pytest.raises(UnreadableError):
        result_key(1, 1, uid)


@pytest.mark.parametrize("uid", ["1.2.840.00113619.04", "1", "1" * 64, "0.0"])
def test_uids_as_scanners_write_them_are_taken(uid: str) -> None:
    assert checked_uid(uid, "SOPInstanceUID") == uid


def test_a_key_that_is_there_is_left_as_it_is(store: Store) -> None:
    one, other = store.receive(b"one", (b"x",)), store.receive(b"other", (b"x",))
    assert store.publish(one, KEY)
    assert not store.publish(other, KEY)
    assert store.get(KEY) == b"onex"


def synced_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of what is synced from now on."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_the_temporary_name_is_synced_and_says_what_has_to_be_behind_it(
    store: Store, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut, a file is there only if its folder's entry was synced, and whole only if it was itself."""
    synced = synced_by(monkeypatch)
    got = store.receive(b"head", (b"data",), association=7)
    assert synced == [str(incoming / got.name), str(incoming)]
    assert got.name.split(".")[1:] == ["7", hashlib.sha256(b"data").hexdigest()]
    assert got.association == 7
    assert store.receive(b"head", (b"data",)).association is None


def test_every_lasting_name_is_synced_before_the_temporary_one_goes(
    store: Store, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KEY.replace("1.2.3.4", "1.2.3.5")
    one, other = store.receive(b"head", (b"data",)), store.receive(b"head", (b"more",))
    synced = synced_by(monkeypatch)
    root = str(store._root)
    store.publish(one, KEY)
    store.publish(other, key)
    assert [path.removeprefix(root) for path in synced] == ["/instances/1.2", "/instances", ""]
    assert len(list(incoming.iterdir())) == 2
    synced.clear()
    store.settle([(one, KEY), (other, key)])
    assert [path.removeprefix(root) for path in synced] == ["/instances/1.2/1.2.3"]  # one for all of a series
    assert list(incoming.iterdir()) == []


def test_what_cannot_be_synced_keeps_its_temporary_name(
    store: Store, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = store.receive(b"head", (b"data",))
    store.publish(got, KEY)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError):
        store.settle([(got, KEY)])
    assert [path.name for path in incoming.iterdir()] == [got.name]


def test_a_folder_that_another_process_made_is_synced_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store._root / "instances/1.2/1.2.3").mkdir(parents=True)  # and that process may have been killed just then
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    got = store.receive(b"head", (b"data",))
    store.publish(got, KEY)
    assert str(store._root / "instances/1.2") in synced


def test_a_file_is_synced_before_it_has_a_lasting_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            steps.append(name)
            return real(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(os, "link", noting("link", os.link))
    monkeypatch.setattr(Path, "replace", noting("replace", Path.replace))
    store.publish(store.receive(b"head", (b"data",)), KEY)
    assert steps.index("fsync") < steps.index("link")
    steps.clear()
    store.put("results/1/1/1.2.dcm", b"bytes")
    assert steps.index("fsync") < steps.index("replace") < len(steps) - 1


def test_a_result_is_replaced_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = result_key(3, 1, "1.2.3")
    store.put(key, b"one")
    store.put(key, b"another")
    assert store.get(key) == b"another"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFullError):
        store.put(key, b"third")
    assert store.get(key) == b"another"
    assert [path.name for path in (store._root / "results/3/1").iterdir()] == ["1.2.3.dcm"]


def test_a_missing_file_is_a_sentence(store: Store) -> None:
    assert not store.exists(KEY)
    with pytest.raises(StoreError, match=r"Cannot read instances/1\.2"):
        store.get(KEY)


class TestLeftOver:
    """What an end without warning leaves in `incoming/`."""

    def test_what_was_received_whole_says_so(self, store: Store, incoming: Path) -> None:
        got = store.receive(b"head", (b"data",), association=3)
        (incoming / "0123").write_bytes(b"headda")  # the process was killed before its end
        (incoming / "a.b.c").write_bytes(b"")  # and this is nobody's
        left = {one.name: one for one in store.left_over()}
        assert left["0123"].digest == left["a.b.c"].digest == ""
        assert left["a.b.c"].association is None
        assert (left[got.name].digest, left[got.name].association) == (got.digest, 3)

    def test_a_withdrawn_name_is_gone(self, store: Store) -> None:
        got = store.receive(b"head", (b"data",))
        store.publish(got, KEY)
        store.withdraw(got, KEY)
        assert not store.exists(KEY)

    def test_a_lasting_name_of_another_file_is_not_touched(self, store: Store) -> None:
        one, other = store.receive(b"head", (b"data",)), store.receive(b"head", (b"data",))
        store.publish(one, KEY)
        store.withdraw(other, KEY)
        assert store.exists(KEY)


def test_dropping_twice_does_no_harm(store: Store) -> None:
    got = store.receive(b"head", (b"data",))
    store.drop(got)
    store.drop(got)
    store.drop(Incoming("never-there", "", 0, 0, b""))
