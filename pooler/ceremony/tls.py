"""TLS contexts for both sides, and the self-signed certificate where the operator gave none.

Not here: the handshakes (`transport`), when they happen (`login`, `connect`).
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config import Config, Target
from config.passwords import Stamp, stamp_of
from pooler.logs import get_logger
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


_contexts: dict[tuple[str, str | None], tuple[Stamp | None, ssl.SSLContext]] = {}


def origin_context(target: Target) -> ssl.SSLContext:
    """`_origin_context`, made anew when the file of root certificates has changed; a broken file keeps the old one.

    Raises:
      OSError, ssl.SSLError: as it does, the first time.
    """
    place = target.sslmode, target.sslrootcert
    stamp = stamp_of(Path(target.sslrootcert)) if target.sslrootcert not in (None, "system") else None
    known = _contexts.get(place)
    if known is not None and known[0] == stamp:
        return known[1]
    try:
        context = _origin_context(target)
    except (OSError, ssl.SSLError) as error:
        if known is None:
            raise
        log.error("tls_reload_failed", setting="sslrootcert", file=target.sslrootcert, reason=str(error))
        context = known[1]
    _contexts[place] = stamp, context
    return context


def _origin_context(target: Target) -> ssl.SSLContext:
    """How certificates of the origin are judged, by libpq's sslmode words.

    `verify-full`: chain and name; `verify-ca`: chain; `require` verifies the chain too where a root certificate is
    given (as libpq does); `prefer` and `allow` encrypt without judging.

    Raises:
      OSError, ssl.SSLError: the root certificate cannot be read.
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
            context.load_verify_locations(cafile=str(root))
    return context
