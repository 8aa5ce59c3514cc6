"""The certificate that clients are shown, followed through its files: a new one is used from the next handshake on.

One that cannot be used changes nothing. Not here: what is made of the files, and certificates for origins (`tls`).
"""

from __future__ import annotations

import ssl

import trio

from config import Config
from config.passwords import Stamp, stamp_of
from pooler.ceremony.rotation import LOOK_SECONDS
from pooler.ceremony.tls import server_tls
from pooler.logs import get_logger
from pooler.stats import certificate_reloads

log = get_logger(__name__)


class Certificate:
    """What pgnear shows its clients.

    Attributes:
      tls: of now; None where TLS is off.

    Raises:
      OSError, ssl.SSLError, ValueError: the certificate or key of `config` cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.tls = server_tls(config)
        self._config = config
        self._stamps = _stamps_of(config)

    def reload(self, config: Config) -> str:
        """Read what `config` names, again; why the old one stays, "" where it does not."""
        self._config = config
        stamps = _stamps_of(config)
        changed, self._stamps = stamps != self._stamps, stamps
        kept = self.tls
        if kept is not None and kept.self_signed and config.tls != "disable" and not config.tls_cert_file:
            return ""
        try:
            self.tls = server_tls(config)
        except (OSError, ssl.SSLError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            certificate_reloads["kept"] += 1
            log.error("tls_reload_failed", setting="tls_cert_file", reason=reason)
            return reason
        if changed:
            certificate_reloads["used"] += 1
            log.info("tls_reloaded", setting="tls_cert_file", file=str(config.tls_cert_file))
        return ""

    async def keep(self) -> None:
        """Follow the files, for as long as the process lives."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            if _stamps_of(self._config) != self._stamps:
                self.reload(self._config)


def _stamps_of(config: Config) -> tuple[Stamp | None, ...]:
    return stamp_of(config.tls_cert_file), stamp_of(config.tls_key_file)
