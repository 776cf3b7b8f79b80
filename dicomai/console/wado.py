"""WADO-RS: what is asked for, and how it is sent (PS3.18 10.4); every instance as it is stored."""

import re
import uuid
from collections.abc import Sequence
from email.message import Message
from http import HTTPStatus

from dicomai.console.body import BLOCK, RequestError
from dicomai.console.exchange import Exchange
from dicomai.console.stow import read_meta
from dicomai.database.retrieval import Kept
from dicomai.errors import StoreError
from dicomai.store import Store

ANY = "*"


def accepted_syntaxes(accept: Sequence[str]) -> set[str]:
    """Give the transfer syntaxes that a reader takes; `*` stands for all.

    Args:
        accept: the Accept headers.

    Raises:
        RequestError: it takes nothing that could be sent.
    """
    if not accept:
        return {ANY}
    syntaxes: set[str] = set()
    for media_range in re.findall(r'(?:[^,"]|"[^"]*")+', ",".join(accept)):
        one = Message()
        one["Content-Type"] = media_range.strip()
        kind, root = one.get_content_type(), one.get_param("type", "application/dicom")
        is_ours = kind == "multipart/related" and str(root).lower() == "application/dicom"
        if (is_ours or kind in {"multipart/*", "*/*"}) and not re.fullmatch(r"0(\.0*)?", str(one.get_param("q"))):
            syntaxes.add(str(one.get_param("transfer-syntax", ANY)))
    if not syntaxes:
        raise RequestError(
            HTTPStatus.NOT_ACCEPTABLE, 'What can be had is multipart/related; type="application/dicom"; accept that.'
        )
    return syntaxes


def send(exchange: Exchange, store: Store, kept: Sequence[Kept], syntaxes: set[str]) -> None:
    """Send instances as they are stored.

    Args:
        exchange: what is answered.
        store: where they are.
        kept: the instances, one or more.
        syntaxes: those that the reader takes.

    Raises:
        RequestError: one has another transfer syntax; nothing was sent.
        StoreError: one cannot be read; where the answer has begun already, the connection has to be cut.
    """
    for one in kept if ANY not in syntaxes else ():
        with store.open(one.key) as stream:
            meta, _ = read_meta(iter(lambda stream=stream: stream.read(BLOCK), b""))  # type: ignore[misc]
        if meta.transfer_syntax_uid not in syntaxes:
            raise RequestError(
                HTTPStatus.NOT_ACCEPTABLE,
                f"What is stored is sent as it is, here in {meta.transfer_syntax_uid}; accept transfer-syntax=*.",
            )
    boundary = uuid.uuid4().hex
    before = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode("ascii")
    after = f"\r\n--{boundary}--\r\n".encode("ascii")
    with store.open(kept[0].key):  # says in an answer that the storage is away, where a broken connection would not
        pass
    exchange.begin(
        HTTPStatus.OK,
        f'multipart/related; type="application/dicom"; boundary={boundary}',
        sum(len(before) + one.size for one in kept) + len(after),
    )
    for one in kept:
        exchange.wfile.write(before)
        left = one.size
        with store.open(one.key) as stream:
            while block := stream.read(min(left, BLOCK)):
                left -= len(block)
                exchange.wfile.write(block)
            if left or stream.read(1):
                raise StoreError(f"{one.key} has not the size that the index knows; check the storage's disk.")
    exchange.wfile.write(after)
