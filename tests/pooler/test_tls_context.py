"""Root certificates of an origin: followed when their file changes, kept when it breaks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from config import url
from pooler.ceremony.tls import CertificateUnusable, origin_context, trial
from tests.support.certificates import Authority


def test_a_changed_root_certificate_takes_over_once_it_works(tmp_path: Path) -> None:
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
    assert trial(target) is None
    put(b"-----BEGIN CERTIFICATE-----\nbroken\n", 2)
    assert trial(target) is None
    put(Authority().certificate, 3)
    refused = trial(target)
    assert refused is not None
    refused.failed("nobody is there who has it")
    assert trial(target) is None, "what was refused is not tried again at once"
    assert subjects() == first
    put(Authority().certificate, 4)
    used = trial(target)
    assert used is not None
    assert subjects() == first
    used.succeeded()
    assert subjects() != first
    assert origin_context(target) is used.context
