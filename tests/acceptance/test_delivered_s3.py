"""Results to a real server of S3: whole objects or none, each compared with what was sent, and nothing written over."""

import io
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dicomai.config import TlsSettings
from dicomai.destinations import Outgoing, ask, open_destination
from dicomai.destinations.filing import Filed
from dicomai.destinations.s3 import S3
from dicomai.errors import NotAdmittedError, RejectedError
from tests.acceptance.seaweedfs import ADMINISTRATOR, Seaweedfs, seaweedfs
from tests.synthetic import encode, series


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweedfs]:
    with seaweedfs(tmp_path_factory.mktemp("s3")) as running:
        yield running


def made(count: int, more: int = 0) -> dict[Outgoing, bytes]:
    """Objects, each with its bytes; so many more at the end."""
    data = [(ds, encode(ds) + bytes(more)) for ds in series(shape=(count, 8, 8))]
    return {Outgoing(str(d.SOPClassUID), str(d.SOPInstanceUID), partial(io.BytesIO, file)): file for d, file in data}


def key(outgoing: Outgoing, prefix: str = "") -> str:
    return prefix + "/".join(Filed.of(outgoing, "bucket").parts)


def send(destination: S3, *objects: Outgoing) -> list[str]:
    accepted: list[str] = []
    destination.send(objects, lambda o, *_: accepted.append(o.sop_instance_uid))
    return accepted


def test_objects_lie_by_study_and_series_and_a_second_sending_changes_nothing(server: Seaweedfs) -> None:
    objects = made(2, 12_000_000)  # which this server cuts into several
    assert ask(server.entry(), calling_ae="X", timeout=10.0, tls=server.tls).seconds < 10
    for _ in range(2):
        assert send(server.destination(prefix="ai/results/"), *objects) == [o.sop_instance_uid for o in objects]
    expected = {key(o, "ai/results/"): data for o, data in objects.items()}
    assert server.objects(list(expected)) == expected


def test_an_object_is_never_whole_in_memory(server: Seaweedfs, tmp_path: Path) -> None:
    ((one, data),) = made(1).items()
    with (tmp_path / "large.dcm").open("wb") as file:
        file.write(data)
        file.truncate(100_000_000)
    large = Outgoing(one.sop_class_uid, one.sop_instance_uid, partial((tmp_path / "large.dcm").open, "rb"))
    tracemalloc.start()
    try:
        assert send(server.destination(), large) == [one.sop_instance_uid]
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_another_object_under_the_same_uid_is_not_overwritten(
    server: Seaweedfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((one, data),) = made(1).items()
    send(server.destination(), one)
    changed = Outgoing(one.sop_class_uid, one.sop_instance_uid, partial(io.BytesIO, data[:-1] + bytes([data[-1] ^ 1])))
    with pytest.raises(RejectedError, match=r"holds another object at .*: move that one away"):
        send(server.destination(), changed)
    look, looks = S3._is_same, iter([True, False])
    monkeypatch.setattr(S3, "_is_same", lambda *a: None if next(looks) else look(*a))  # it comes after the look
    with pytest.raises(RejectedError, match="holds another object"):
        send(server.destination(), changed)
    assert server.objects([key(one)]) == {key(one): data}


def test_who_is_not_let_in(server: Seaweedfs) -> None:
    (one,) = made(1)
    cases = {
        ("NODE", "wrong secret", "results"): r"403 \(SignatureDoesNotMatch\) to a list: check secret_key and region",
        ("NOBODY", "of/the+node", "results"): r"403 \(InvalidAccessKeyId\) to a list: check access_key",
        ("NODE", "of/the+node", "others"): r"403 \(AccessDenied\) to a list: allow this key s3:ListBucket",
        ("READER", "of the reader", "results"): r"403 \(AccessDenied\) to SOP Instance .* s3:PutObject in it",
    }
    for (access, secret, bucket), sentence in cases.items():
        destination = server.destination(access_key=access, secret_key=secret, bucket=bucket)
        with pytest.raises(NotAdmittedError, match=sentence) as said:
            send(destination, one)
        assert secret not in str(said.value)
        destination.reach()  # it is there
    assert server.objects([key(one)]) == {key(one): None}


def test_a_bucket_that_is_not_there(server: Seaweedfs) -> None:
    administrator = server.destination(**ADMINISTRATOR, bucket="nowhere")
    with pytest.raises(NotAdmittedError, match=r"404 \(NoSuchBucket\) to a list: have the bucket made"):
        administrator.ask()


def test_it_is_known_by_its_certificate_and_we_by_ours(server: Seaweedfs, tmp_path: Path) -> None:
    without = TlsSettings(authorities=server.tls.authorities)
    stranger = open_destination(server.entry(), calling_ae="X", timeout=10.0, tls=without)
    with pytest.raises(NotAdmittedError, match="it refused our certificate"):
        stranger.send(list(made(1)), lambda *_: None)
