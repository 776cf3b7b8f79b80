"""TLS after the BCP 195 profile of PS3.15 B.12: contexts for both directions, and what a failed handshake means."""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from dicomai.config import DicomDestination, SourceSettings, TlsSettings
from dicomai.errors import ConfigurationError

log = structlog.get_logger()

# RFC 9325 4.2, for TLS 1.2; those of TLS 1.3 are all sound, and the library's own.
_CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256",
    )
)  # fmt: skip

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a handshake failed.

    Attributes:
        reason: in words that follow "the connection is refused: " or the like.
        remedy: what a person can do about it; "there" is the peer's side.
        mends_itself: it passes without a change of this node's or the peer's configuration, such as by a renewal.
    """

    reason: str
    remedy: str
    mends_itself: bool = False


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """Make the context for connections that this node opens; the files are read at every call, so that none is stale.

    The peer's certificate has to be valid, by one of `authorities`, and made out to the host that is called.

    Raises:
        ConfigurationError: a file is missing or wrong.
    """
    if settings.authorities is None:
        raise ConfigurationError("tls.authorities is not set: it says by whom a peer's certificate must be issued.")
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings)
    _trust(context, settings)
    return context


def client_args(settings: TlsSettings, peer: DicomDestination | SourceSettings) -> tuple[ssl.SSLContext, str] | None:
    """Give what `AE.associate` takes as `tls_args` for a peer; None where it is called without TLS.

    Raises:
        ConfigurationError: a file is missing or wrong.
    """
    return (client_context(settings), peer.host) if peer.tls else None


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Make the context for connections that this node accepts.

    Raises:
        ConfigurationError: a file is missing or wrong.
    """
    if settings.certificate is None:
        raise ConfigurationError("tls.certificate is not set: a node that receives by TLS has to show one.")
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    # A session that goes on without a handshake would outlive its certificate.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    if settings.peers == "required":
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, settings)
    return context


class ServerContext:
    """The context for accepted connections, made anew when one of its files has changed."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files.

        Raises:
            ConfigurationError: one is missing or wrong.
        """
        self._settings = settings
        self._stamps = _stamps(settings)
        self._context = server_context(settings)
        self._looked = time.monotonic()

    def get(self) -> ssl.SSLContext:
        """Give the context of the files as they are now; of the last ones that were in order if they are not."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            stamps = _stamps(self._settings)
            if stamps != self._stamps:
                self._stamps = stamps
                self._renew()
        return self._context

    def _renew(self) -> None:
        try:
            self._context = server_context(self._settings)
        except ConfigurationError as error:
            log.error(
                "the changed TLS files are not in order; the receiver goes on with those that it had",
                remedy="mend them; they are read again when they change",
                error=str(error),
            )
        else:
            log.info("TLS files read again")


def fault_of(error: OSError) -> Fault:
    """Say what a failed handshake, or a TLS alert, means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATES.get(error.verify_code) or Fault(
            f"its certificate is not in order ({error.verify_message.rstrip('.')})", "have it issued anew there"
        )
    if isinstance(error, TimeoutError):
        return Fault("it did not finish the TLS handshake in time", "check the network and the peer", mends_itself=True)
    reason = getattr(error, "reason", None) or ""
    if "ALERT" in reason:
        return _alert(reason)
    for words, found in _REASONS.items():
        if words in reason:
            return found
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Fault(f"the TLS handshake failed ({reason.replace('_', ' ').lower() or 'no reason'})", "see its log")
    return Fault("it broke off the TLS handshake", "see its log, it may not trust our certificate", mends_itself=True)


def ends_of_validity(settings: TlsSettings) -> Iterator[tuple[Path, float]]:
    """Give each file of ours with the earliest end of a certificate's validity in it, in seconds since 1970.

    That of `certificate` is found by a handshake with ourselves, which shows that key and certificate serve as well.

    Raises:
        ConfigurationError: a file is missing or wrong, or the certificate is expired or not for a server.
    """
    if settings.certificate is not None:
        yield settings.certificate, _end(_shown(settings))
    if settings.authorities is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load(context, settings.authorities, "authorities", "x509_ca")
        yield settings.authorities, min(_end(one) for one in context.get_ca_certs())


def is_ours(settings: TlsSettings, host: str, port: int, timeout: float) -> bool:
    """Tell whether what listens on a port shows our own certificate.

    Args:
        settings: with a certificate.
        host: where it listens.
        port: on which port.
        timeout: in seconds.

    Raises:
        ConfigurationError: a file is missing or wrong.
    """
    pinned = _pinned(settings)
    try:
        with socket.create_connection((host, port), timeout) as plain, pinned.wrap_socket(plain):
            return True
    except OSError:
        return False


def _context(protocol: int, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(_CIPHERS)
    if settings.certificate is not None and settings.key is not None:
        _readable(settings.certificate, "certificate")
        _readable(settings.key, "key")
        try:
            context.load_cert_chain(settings.certificate, settings.key, password="")  # nobody is there to be asked
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"tls.certificate {settings.certificate} and tls.key {settings.key} are not in order"
                f" ({_words(error)}): they have to be PEM, belong together, and the key be without a passphrase."
            ) from error
    return context


def _trust(context: ssl.SSLContext, settings: TlsSettings) -> None:
    if settings.authorities is not None:
        _load(context, settings.authorities, "authorities", "x509_ca")
    if settings.revocations is not None:
        _load(context, settings.revocations, "revocations", "crl")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _load(context: ssl.SSLContext, path: Path, key: str, kind: str) -> None:
    _readable(path, key)
    why = "it holds none"
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        why = _words(error)
    if not context.cert_store_stats()[kind]:
        what = "revocation lists" if kind == "crl" else "certificates of authorities"
        raise ConfigurationError(f"tls.{key} {path} has to hold {what} as PEM ({why}).")


def _readable(path: Path, key: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigurationError(f"tls.{key} {path} cannot be read: {error.strerror}.") from error


def _words(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or "no reason").replace("_", " ").lower()


def _stamps(settings: TlsSettings) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(
        _stamp(path)
        for path in (settings.certificate, settings.key, settings.authorities, settings.revocations)
        if path is not None
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _pinned(settings: TlsSettings) -> ssl.SSLContext:
    """Make a context that takes our own certificate and no other, whoever has issued it, and shows it as well."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, settings)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.certificate is not None:
        _load(context, settings.certificate, "certificate", "x509")
    return context


def _shown(settings: TlsSettings) -> Mapping[str, object]:
    """Shake hands with ourselves in memory, and give our certificate as the other side sees it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(TlsSettings(certificate=settings.certificate, key=settings.key, peers="none"))
    ends = _pinned(settings).wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for end in 2 * ends:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            said = f"tls.certificate {settings.certificate} does not serve: {fault_of(error).reason}; replace it."
            raise ConfigurationError(said) from error
    return ends[0].getpeercert() or {}


def _end(certificate: Mapping[str, object]) -> float:
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


def _alert(reason: str) -> Fault:
    """Say what an alert of the peer means (RFC 8446 6.2); OpenSSL's names of them have ALERT in them."""
    words = reason.partition("ALERT_")[2].replace("_", " ").lower()
    if "protocol version" in words:
        return _VERSION
    if "handshake failure" in words:
        return _NO_CIPHER
    if "certificate expired" in words:
        return Fault(f"it refused our certificate ({words})", "renew tls.certificate", mends_itself=True)
    if "certificate" in words or "unknown ca" in words:
        remedy = "have it trust the authority that issued tls.certificate, and set tls.certificate if it is not"
        return Fault(f"it refused our certificate ({words})", remedy)
    return Fault(f"it broke off the TLS handshake ({words})", "see its log")


_UNKNOWN = Fault(
    "its certificate is of an authority that is not known here", "add that authority to tls.authorities if it is one"
)
_VERSION = Fault("it has neither TLS 1.2 nor TLS 1.3", "update the peer, or allow TLS 1.2 there")
_NO_CIPHER = Fault("it has no cipher suite in common with us", "allow ECDHE with AES-GCM there (PS3.15 B.12)")
_PLAIN = Fault("it does not speak TLS", "turn TLS on there, or off here")

# By OpenSSL's codes of X509_verify_cert.
_CERTIFICATES = {
    3: Fault("there is no revocation list for its certificate", "add one of every authority to tls.revocations"),
    9: Fault("its certificate is not valid yet", "check the clocks on both sides", mends_itself=True),
    10: Fault("its certificate has expired", "renew it there", mends_itself=True),
    12: Fault("the revocation list has expired", "renew tls.revocations", mends_itself=True),
    18: _UNKNOWN,
    19: _UNKNOWN,
    20: _UNKNOWN,
    21: _UNKNOWN,
    23: Fault("its certificate has been revoked", "keep it out, or have a new one issued there"),
    26: Fault("its certificate is not for this purpose", "have one issued for clients and servers there"),
    62: Fault(
        "its certificate is made out to another host", "call it by a name in its certificate, or have one issued"
    ),
    64: Fault(
        "its certificate is made out to another host", "call it by a name in its certificate, or have one issued"
    ),
}

# By parts of OpenSSL's names of its errors.
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Fault(
        "it shows no certificate", "give it one, or set tls.peers to 'none' to do without"
    ),
    "WRONG_VERSION_NUMBER": _PLAIN,
    "HTTP_REQUEST": _PLAIN,
    "HTTPS_PROXY_REQUEST": _PLAIN,
    "UNEXPECTED_MESSAGE": _PLAIN,
    "UNSUPPORTED_PROTOCOL": _VERSION,
    "VERSION_TOO_LOW": _VERSION,
    "NO_SHARED_CIPHER": _NO_CIPHER,
}
