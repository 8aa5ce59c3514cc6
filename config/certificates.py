"""Whether certificate files can be used, said before anything starts and in words that name the file.

Not here: using them; that is `pooler.ceremony.tls`.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def problems_of_pair(
    certificate: Path | None, key: Path | None, names: tuple[str, str] = ("tls_cert_file", "tls_key_file")
) -> list[str]:
    """What is wrong with a certificate and its key: `setting: what`, one a line.

    Args:
      names: of the two settings.
    """
    of_certificate, of_key = names
    if certificate is None:
        return [] if key is None else [f"{of_certificate}: missing, though {of_key} is set"]
    problems = [
        f"{setting}: {problem}"
        for setting, path, label in (
            (of_certificate, certificate, "CERTIFICATE"),
            (of_key if key else of_certificate, key or certificate, "PRIVATE KEY"),
        )
        if (problem := _problem(path, label))
    ]
    if problems:
        return list(dict.fromkeys(problems))  # one file may hold both
    setting = of_key if key else of_certificate
    try:
        # Without a password of ours OpenSSL would ask the terminal for that of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "-")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return [f"{setting}: the key in {key or certificate} is not that of the certificate in {certificate}"]
        if "ENCRYPTED" in (key or certificate).read_text(errors="replace"):
            return [f"{setting}: the key in {key or certificate} is encrypted; pgnear cannot ask for its password"]
        return [f"{of_certificate}: {certificate} and its key cannot be used: {error.reason or 'they are damaged'}"]
    return []


def problem_of_authorities(file: str) -> str:
    """What is wrong with a file of trusted certificates, "" where nothing is."""
    problem = _problem(Path(file), "CERTIFICATE")
    if not problem:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        except ssl.SSLError as error:
            problem = f"{file} cannot be used: {error.reason or 'it is damaged'}"
    return problem


def _problem(path: Path, label: str) -> str:
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return "" if f"{label}-----" in text else f"{path} has no PEM block of a {label.lower()}"
