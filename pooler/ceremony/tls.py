"""TLS contexts for both sides, and the self-signed certificate where the operator gave none.

Not here: the handshakes (`transport`), when they happen (`login`, `connect`).
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config import Config, Target
from config.certificates import problem_of_authorities, problems_of_pair
from config.passwords import Stamp, stamp_of
from pooler.logs import get_logger
from pooler.stats import certificate_reloads
from protocol.auth import tls_server_end_point

log = get_logger(__name__)

ALPN = "postgresql"


class ServerTls:
    """What pgnear shows its clients.

    Attributes:
      context: for handshakes; TLS 1.2 at least, ALPN `postgresql`.
      channel_binding: the certificate's `tls-server-end-point` data (RFC 5929), for SCRAM-SHA-256-PLUS.
      self_signed: whether pgnear made the certificate itself.
    """

    def __init__(self, context: ssl.SSLContext, channel_binding: bytes, *, self_signed: bool) -> None:
        self.context = context
        self.channel_binding = channel_binding
        self.self_signed = self_signed


def server_tls(config: Config) -> ServerTls | None:
    """The clients' side of `config`, None where `tls` is `disable`.

    Raises:
      OSError, ValueError: the certificate or key cannot be read or do not fit together; the message names the setting.
    """
    if config.tls == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.set_alpn_protocols([ALPN])
    context.num_tickets = 0  # as PostgreSQL: no client of it resumes, and each ticket costs a key and a record
    if config.tls_cert_file:
        key_file = config.tls_key_file or config.tls_cert_file
        certificate_pem = _read("tls_cert_file", config.tls_cert_file)
        _check_key(_read("tls_key_file", key_file), key_file)
        try:
            context.load_cert_chain(str(config.tls_cert_file), str(key_file))
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            if "MISMATCH" in reason:
                reason = "the key is another certificate's"
            raise ValueError(
                f"tls_cert_file {config.tls_cert_file} and its key {key_file} cannot be used: {reason}"
            ) from None
        self_signed = False
    else:
        certificate_pem, key_pem = make_certificate()
        with tempfile.TemporaryDirectory(prefix="pgnear-") as directory:  # load_cert_chain reads only files
            path = Path(directory, "certificate.pem")
            path.touch(mode=0o600)
            path.write_bytes(certificate_pem + key_pem)
            context.load_cert_chain(str(path))
        self_signed = True
    der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)
    return ServerTls(context, tls_server_end_point(der), self_signed=self_signed)


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"{setting} {path} cannot be read: {error.strerror}") from None


def _check_key(pem: bytes, path: Path) -> None:
    """OpenSSL would ask the terminal for a passphrase, and calls all else that is wrong with a key the same."""
    try:
        serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError(f"tls_key_file {path} is encrypted; pgnear needs a key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"tls_key_file {path} holds no private key in PEM") from None


def make_certificate() -> tuple[bytes, bytes]:
    """A fresh key and a certificate for localhost, good for a year: (certificate, key) in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pgnear (self-signed)")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


class CertificateUnusable(ValueError):
    """A certificate towards the origin, or its key, is not what it should be; the message names the setting."""


_Stamps = dict[str, Stamp | None]
"""The states of the files that a context was made of, by setting."""

RETRY_SECONDS = 30.0
"""Between two attempts with files that did not work."""


@dataclass
class _Held:
    """The certificates towards one origin that have worked last."""

    context: ssl.SSLContext
    stamps: _Stamps
    rejected: _Stamps | None = None
    retry_at: float = 0.0


_contexts: dict[tuple[str | None, ...], _Held] = {}


def _place(target: Target) -> tuple[str | None, ...]:
    return target.sslmode, target.sslrootcert, target.sslcert, target.sslkey


def _stamps(target: Target) -> _Stamps:
    root = target.sslrootcert if target.sslrootcert != "system" else None
    files = {"sslrootcert": root, "sslcert": target.sslcert, "sslkey": target.sslkey}
    return {setting: stamp_of(Path(file)) for setting, file in files.items() if file}


def origin_context(target: Target) -> ssl.SSLContext:
    """What holds for TLS to this origin, read at the first call.

    Raises:
      CertificateUnusable: as `_origin_context` does.
    """
    held = _contexts.get(_place(target))
    if held is None:
        stamps = _stamps(target)
        held = _contexts[_place(target)] = _Held(_origin_context(target), stamps)
    return held.context


class Trial:
    """Certificates from files that have changed: used from now on if a connection can be made with them.

    Attributes:
      context: for that connection.
    """

    def __init__(self, held: _Held, context: ssl.SSLContext, stamps: _Stamps) -> None:
        self.context = context
        self._held = held
        self._stamps = stamps

    def succeeded(self) -> None:
        if self._stamps == self._held.stamps:
            return  # another connection was made with them at the same time
        changed = _changed(self._held, self._stamps)
        self._held.context, self._held.stamps, self._held.rejected = self.context, self._stamps, None
        certificate_reloads["used"] += 1
        log.info("tls_reloaded", setting=changed)

    def failed(self, reason: str) -> None:
        """No connection could be made with them, and one with those that hold."""
        _reject(self._held, self._stamps, reason)


def trial(target: Target) -> Trial | None:
    """New certificates for this origin that should be tried; None where there are none."""
    held = _contexts.get(_place(target))
    if held is None:
        return None
    stamps = _stamps(target)
    if stamps == held.stamps or (stamps == held.rejected and time.monotonic() < held.retry_at):
        return None
    try:
        return Trial(held, _origin_context(target), stamps)
    except CertificateUnusable as error:
        _reject(held, stamps, str(error))
        return None


def _reject(held: _Held, stamps: _Stamps, reason: str) -> None:
    if stamps != held.rejected:
        certificate_reloads["kept"] += 1
        log.error("tls_reload_failed", setting=_changed(held, stamps), reason=reason)
    held.rejected, held.retry_at = stamps, time.monotonic() + RETRY_SECONDS


def _changed(held: _Held, stamps: _Stamps) -> str:
    return ", ".join(setting for setting, stamp in stamps.items() if stamp != held.stamps.get(setting))


def _origin_context(target: Target) -> ssl.SSLContext:
    """How certificates of the origin are judged, by libpq's sslmode words.

    `verify-full`: chain and name; `verify-ca`: chain; `require` verifies the chain too where a root certificate is
    given (as libpq does); `prefer` and `allow` encrypt without judging.

    Raises:
      CertificateUnusable: a file cannot be read, or a certificate and its key do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([ALPN])
    context.check_hostname = target.sslmode == "verify-full"
    root = target.sslrootcert
    verifies = target.sslmode in ("verify-ca", "verify-full") or (
        target.sslmode == "require" and root not in (None, "system")
    )
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if verifies:
        if root is None or root == "system":
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            if problem := problem_of_authorities(root):
                raise CertificateUnusable(f"sslrootcert: {problem}")
            context.load_verify_locations(cafile=root)
    if target.sslcert:
        pair = Path(target.sslcert), Path(target.sslkey) if target.sslkey else None
        if problems := problems_of_pair(*pair, ("sslcert", "sslkey")):
            raise CertificateUnusable(problems[0])
        context.load_cert_chain(*pair)
    return context
