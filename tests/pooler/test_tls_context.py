"""Root certificates of an origin: followed when their file changes, kept when it breaks."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from config import url
from pooler.ceremony.tls import CertificateUnusable, origin_context
from tests.support.certificates import Authority


def test_a_changed_root_certificate_is_read_and_a_broken_one_keeps_the_old(tmp_path: Path) -> None:
    file = tmp_path / "root.crt"
    target = url.parse(f"postgresql://app:secret@db.example.com/shop?sslmode=verify-full&sslrootcert={file}")
    with pytest.raises(CertificateUnusable, match="No such file"):
        origin_context(target)

    def subjects() -> list[int]:
        return [certificate["serialNumber"] for certificate in origin_context(target).get_ca_certs()]  # type: ignore[misc]

    def put(content: bytes, time: int) -> None:
        file.write_bytes(content)
        os.utime(file, ns=(time, time))

    put(Authority().certificate, 1)
    first = subjects()
    context = origin_context(target)
    assert origin_context(target) is context
    put(b"-----BEGIN CERTIFICATE-----\nbroken\n", 2)
    assert subjects() == first
    put(Authority().certificate, 3)
    assert subjects() != first
    assert isinstance(context, ssl.SSLContext)
