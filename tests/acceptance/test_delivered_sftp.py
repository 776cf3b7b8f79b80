"""Results to a real OpenSSH server by SFTP: whole files or none, and only to the host that is known."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomai.config import SftpDestination
from dicomai.destinations import Outgoing, ask, open_destination, sftp
from dicomai.destinations.filing import Filed
from dicomai.errors import NoAssociationError, NotAdmittedError, RejectedError, UnreachableError
from tests.acceptance.sshd import Sshd, keygen, sshd
from tests.dimse import HOST, wait_until
from tests.integration.test_destinations import changed, outgoing, whole


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("ssh") / "server") as running:
        yield running


def send(entry: SftpDestination, *objects: Outgoing) -> list[str]:
    accepted: list[str] = []
    open_destination(entry, calling_ae="X", timeout=10.0).send(
        objects, lambda o, *_: accepted.append(o.sop_instance_uid)
    )
    return accepted


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_lie_by_study_and_series_and_a_second_sending_changes_nothing(server: Sshd, tmp_path: Path) -> None:
    objects = [changed(o, whole(o) + bytes(3_000_000)) for o in outgoing(2)]
    entry = server.entry(path=str(tmp_path / "new" / "results"))
    assert ask(entry, calling_ae="X", timeout=10.0).seconds < 10
    for _ in range(2):
        assert send(entry, *objects) == [o.sop_instance_uid for o in objects]
        expected = {"/".join(Filed.of(o, "files").parts): whole(o) for o in objects}
        assert files(tmp_path / "new" / "results") == expected  # and nothing that is half


def test_another_object_under_the_same_uid_is_not_overwritten(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = outgoing(1)
    entry = server.entry(path=str(tmp_path))
    send(entry, one)
    other = changed(one, whole(one)[:-1] + b"\1")
    with pytest.raises(RejectedError, match="holds another object"):
        send(entry, other)
    monkeypatch.setattr(sftp, "_is_same", lambda *_: None)  # it comes between the look and the writing
    with pytest.raises(UnreachableError, match="could not write"):
        send(entry, other)
    assert list(files(tmp_path).values()) == [whole(one)]


def test_a_file_that_is_longer_than_the_object_is_not_read(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = outgoing(1)
    target = tmp_path.joinpath(*Filed.of(one, "files").parts)
    target.parent.mkdir(parents=True)
    with target.open("wb") as stream:
        stream.truncate(1 << 40)
    monkeypatch.delattr("paramiko.SFTPClient.getfo")
    with pytest.raises(RejectedError, match="holds another object"):
        send(server.entry(path=str(tmp_path)), one)


def test_asking_whether_it_is_there_is_no_login(server: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "stranger")
    log = server.folder / "sshd.log"
    before = log.read_text(encoding="utf-8").count("authenticating user")
    destination = open_destination(server.entry(key=tmp_path / "stranger"), calling_ae="X", timeout=10.0)
    destination.reach()
    with pytest.raises(NotAdmittedError, match="does not let"):
        destination.send(outgoing(1), lambda *_: None)
    wait_until(lambda: log.read_text(encoding="utf-8").count("authenticating user") > before)
    assert log.read_text(encoding="utf-8").count("authenticating user") == before + 1


def test_a_folder_that_cannot_be_written_leaves_nothing(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError, match="could not write"):
        send(server.entry(path=str(tmp_path / "file")), *outgoing(1))
    assert files(tmp_path) == {"file": b""}


def test_only_the_host_that_is_known_is_sent_to(server: Sshd, tmp_path: Path) -> None:
    there, another = f"[{HOST}]:{server.port} ", keygen(tmp_path / "another")
    cases = {
        there + another: "shows another host key",
        f"elsewhere {another}": "is not in .*: enter its host key",
    }
    for text, sentence in cases.items():
        (tmp_path / "known_hosts").write_text(text, encoding="utf-8")
        entry = server.entry(known_hosts=tmp_path / "known_hosts", path=str(tmp_path / "out"))
        with pytest.raises(NotAdmittedError, match=sentence):
            send(entry, *outgoing(1))
        assert (tmp_path / "known_hosts").read_text(encoding="utf-8") == text  # nobody is let in by trial
        open_destination(entry, calling_ae="X", timeout=10.0).reach()  # it is there, whoever it is
    assert not (tmp_path / "out").exists()


def test_who_is_not_let_in(server: Sshd, tmp_path: Path) -> None:
    keygen(tmp_path / "stranger")
    for keys in ({"key": tmp_path / "stranger"}, {"key": None, "password": "wrong"}, {"user": "nobody-here"}):
        with pytest.raises(NotAdmittedError, match="does not let") as said:
            send(server.entry(**keys), *outgoing(1))
        assert "wrong" not in str(said.value)


def test_a_server_that_goes_away(tmp_path: Path) -> None:
    (one, two) = outgoing(2)
    with sshd(tmp_path / "server") as server:
        destination = open_destination(server.entry(), calling_ae="X", timeout=10.0)

        def end(*_: object) -> None:
            for child in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)

        with pytest.raises(UnreachableError, match="broke off"):
            destination.send([one, two], end)
        assert list(files(server.folder / "out").values()) == [whole(one)]
    with pytest.raises(NoAssociationError, match="cannot be connected to"):
        destination.reach()
