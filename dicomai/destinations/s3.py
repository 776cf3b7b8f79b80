"""S3 destination: DICOM files as objects `<study>/<series>/<sop instance>.dcm` in a bucket. Signed by botocore."""

import base64
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlencode

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dicomai.config import S3Destination, TlsSettings
from dicomai.destinations.base import Accepted, Asked, Outgoing, Refused, offer
from dicomai.destinations.filing import Filed, Files, blocks, size
from dicomai.destinations.web import Reply, Server
from dicomai.errors import DeliveryError, NotAdmittedError, NotKeptError, RejectedError, UnreachableError

_LARGEST = 5 * 1024**3
"""Bytes that one request may bring (Amazon S3, PutObject); larger objects would need several."""

_RIGHTS = "allow this key s3:ListBucket of the bucket, and s3:GetObject and s3:PutObject in it"

# What the service says in its answer (Amazon S3, List of error codes), where that tells more than the status.
_FOR_NOW = {
    "BadDigest": "what arrived is not what was sent",
    "ConditionalRequestConflict": "somebody else writes it at the same time",
    "IncompleteBody": "what arrived is not what was sent",
    "OperationAborted": "somebody else changes it at the same time",
    "QuotaExceeded": "make room, or raise the quota",
    "RequestTimeout": "it did not get the object in time",
    "XAmzContentChecksumMismatch": "what arrived is not what was sent",
    "XAmzContentSHA256Mismatch": "what arrived is not what was sent",
    "XMinioAdminBucketQuotaExceeded": "make room, or raise the quota",
}
_OUTSIDE = {
    "AccessDenied": _RIGHTS,
    "AuthorizationHeaderMalformed": "check region of the [[destination]]",
    "InvalidAccessKeyId": "check access_key of the [[destination]]",
    "InvalidBucketName": "check bucket of the [[destination]]",
    "NoSuchBucket": "have the bucket made, or check bucket of the [[destination]]",
    "PermanentRedirect": "check url and region of the [[destination]]",
    "RequestTimeTooSkewed": "set the clock right, here or there",
    "SignatureDoesNotMatch": "check secret_key and region of the [[destination]]",
}
_REMEDIES = {
    401: "check access_key and secret_key of the [[destination]]",
    403: _RIGHTS,
    404: "check url and bucket of the [[destination]]",
    413: "have it, or the proxy before it, take larger requests",
}


@dataclass(frozen=True, slots=True)
class _Content:
    """What is known of a file before it is sent.

    Attributes:
        size: in bytes.
        md5: the ETag of an object that was put in one piece and not encrypted with a key of a service.
        sha256: what the service checks the body against, and shows as the object's checksum where it knows such.
    """

    size: int
    md5: bytes
    sha256: bytes

    @classmethod
    def of(cls, file: BinaryIO) -> "_Content":
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        length = size(file)
        for block in blocks(file):
            md5.update(block)
            sha256.update(block)
        file.seek(0)
        return cls(length, md5.digest(), sha256.digest())


_NOTHING = _Content(0, b"", hashlib.sha256().digest())


class _Signer(S3SigV4Auth):  # type: ignore[misc]  # the library has no types
    """Signature Version 4, over a digest of the body that is known already."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["sha256"])


class S3(Files[S3Destination]):
    """A bucket on a server of S3, into which others look.

    The credentials are those of the configuration: no file, variable or service of a cloud is asked for others.
    """

    def __init__(self, settings: S3Destination, *, timeout: float, tls: TlsSettings | None = None) -> None:
        """Make the destination; nothing is connected yet.

        Args:
            settings: the entry of the configuration.
            timeout: seconds without any progress after which an attempt ends.
            tls: the section `[tls]`.

        Raises:
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        super().__init__(settings)
        scheme, _, host = settings.url.partition("://")
        is_virtual = settings.addressing == "virtual"
        self._url = f"{scheme}://{settings.bucket}.{host}" if is_virtual else settings.url
        self._bucket = "/" if is_virtual else f"/{settings.bucket}/"
        self._server = Server(settings.name, self._url, timeout, tls or TlsSettings(), headers={}, remedies=_REMEDIES)
        credentials = Credentials(settings.access_key, settings.secret_key.get_secret_value())
        self._signer = _Signer(credentials, "s3", settings.region)

    def reach(self) -> None:
        """Ask whether the server is there; one that answers us, and be it to refuse, is.

        Raises:
            UnreachableError: it is not.
        """
        with contextlib.suppress(RejectedError):
            self.ask()

    def ask(self) -> Asked:
        """List one object of ours at most.

        Raises:
            UnreachableError: the server is not there.
            RejectedError: it does not let us in, has no such bucket, or is none of S3.
        """
        query = {"list-type": 2, "max-keys": 1, **({"prefix": self._prefix} if self._prefix else {})}
        start = time.monotonic()
        reply = self._call("GET", f"{self._bucket.rstrip('/') or '/'}?{urlencode(query)}")
        seconds = time.monotonic() - start
        if not reply.is_success:
            raise self._refused(reply, "a list")
        if b"<ListBucketResult" not in reply.body:
            raise NotAdmittedError(f"{self._server} answered a list with something else: check url, then retry.")
        return Asked(seconds)

    def send(self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused | None = None) -> None:
        """Put objects in the order given, each in one piece, and look at it there; one that is there already is left.

        Raises:
            NoAssociationError: no connection could be had, or the server takes nothing for now.
            NotKeptError: the server does not show what it accepted.
            UnreachableError: the connection broke, or the server cannot take the object for now.
            NotAdmittedError: the server does not let us in, or has no such bucket.
            RejectedError: a UID cannot be a name, another object has this one's UID, or it is too large.
        """
        for outgoing in objects:
            offer(outgoing, self._store, accepted, refused)

    @property
    def _prefix(self) -> str:
        return f"{self._settings.prefix}/" if self._settings.prefix else ""

    def _store(self, outgoing: Outgoing) -> tuple[int, str]:
        key = self._prefix + "/".join(Filed.of(outgoing, self.name).parts)
        with outgoing.open() as file:
            self._keep(outgoing, file, key)
        return 0x0000, ""

    def _keep(self, outgoing: Outgoing, file: BinaryIO, key: str) -> None:
        what = f"SOP Instance {outgoing.sop_instance_uid}"
        content = _Content.of(file)
        is_same = self._is_same(key, content, what)
        if is_same is None:
            is_ours = self._put(key, content, file, what)
            is_same = self._is_same(key, content, what)
            if is_same is None or (is_ours and not is_same):
                shown = "nothing" if is_same is None else "something else"
                raise NotKeptError(f"{self._server} shows {shown} at {key} after {what} was put there: see its log.")
        if not is_same:
            raise RejectedError(f"{self._server} holds another object at {key}: move that one away, then retry.")

    def _put(self, key: str, content: _Content, file: BinaryIO, what: str) -> bool:
        """Put an object; tells whether it is ours, since another may have come after the look.

        Where the server does not know the condition that nothing be there, only that look has kept it.
        """
        if content.size > _LARGEST:
            raise RejectedError(f"{self._server} cannot be sent {what}, which has over {_LARGEST} bytes.")
        headers = {
            "Content-Type": "application/dicom",
            "Content-MD5": base64.b64encode(content.md5).decode("ascii"),
            "x-amz-checksum-sha256": base64.b64encode(content.sha256).decode("ascii"),
        }
        for condition in ({"If-None-Match": "*"}, {}):
            file.seek(0)
            reply = self._call("PUT", self._bucket + key, {**headers, **condition}, content, blocks(file))
            if reply.status != 501:  # NotImplemented: of a header
                break
        if not reply.is_success and reply.status != 412:
            raise self._refused(reply, what)
        return reply.is_success

    def _is_same(self, key: str, content: _Content, what: str) -> bool | None:
        """Tell whether an object has these bytes; None where there is none. It is read only where nothing else tells.

        An ETag that is another proves nothing: it need not be a digest of the bytes.
        """
        reply = self._call("HEAD", self._bucket + key, {"x-amz-checksum-mode": "ENABLED"})
        if reply.status == 404:
            return None
        if not reply.is_success:
            if reply.status < 500:  # an answer to HEAD gives no reason
                self.ask()
            raise self._refused(reply, f"a look at {what}")
        if reply.headers.get("Content-Length") != str(content.size):
            return False
        checksum = reply.headers.get("x-amz-checksum-sha256", "")
        if checksum and "-" not in checksum:  # of the whole object, not of its parts
            return checksum == base64.b64encode(content.sha256).decode("ascii")
        return reply.headers.get("ETag", "").strip('"') == content.md5.hex() or self._reads_same(key, content, what)

    def _reads_same(self, key: str, content: _Content, what: str) -> bool | None:
        digest, length = hashlib.sha256(), 0

        def take(block: bytes) -> None:
            nonlocal length
            length += len(block)
            if length > content.size:
                raise UnreachableError(f"{self._server} sends more of {what} than it says it holds: see its log.")
            digest.update(block)

        reply = self._call("GET", self._bucket + key, sink=take)
        if reply.status == 404:
            return None
        if not reply.is_success:
            raise self._refused(reply, f"a reading of {what}")
        return digest.digest() == content.sha256

    def _call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: _Content = _NOTHING,
        body: Iterable[bytes] | None = None,
        sink: Callable[[bytes], object] | None = None,
    ) -> Reply:
        request = AWSRequest(method, self._url + path, headers)
        request.context["sha256"] = content.sha256.hex()
        self._signer.add_auth(request)
        signed = dict(request.headers.items())
        if body is not None:
            signed["Content-Length"] = str(content.size)
        return self._server.call(method, path, body, signed, sink)

    def _refused(self, reply: Reply, what: str) -> DeliveryError:
        """Make the error for a status that is no success, by the reason in the answer where we know that."""
        found = re.search(rb"<Code>([A-Za-z0-9]{1,64})</Code>", reply.body)
        code = found[1].decode("ascii") if found else ""
        said = f"{self._server} answered {reply.status} ({code}) to {what}"
        if code in _FOR_NOW:
            return UnreachableError(f"{said}, {_FOR_NOW[code]}: another attempt may succeed.")
        if code in _OUTSIDE:
            return NotAdmittedError(f"{said}: {_OUTSIDE[code]}, then retry.")
        return self._server.refused(reply, what, code)
