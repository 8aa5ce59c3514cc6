"""What a client's two SCRAM messages must look like, and what PostgreSQL says of those that do not.

Lives here: the grammar of client-first-message and client-final-message, told in PostgreSQL's words. Not here: nonces,
proofs and keys (`auth`, and scramp in it). Source: RFC 5802, section 7; PostgreSQL documentation, "SASL
Authentication". Compared with a real server's answers by the tests.
"""

from __future__ import annotations

import base64
import binascii
import re

from protocol.errors import (
    channel_binding_downgraded,
    malformed_scram,
    protocol_violation,
    scram_nonce_mismatch,
    scram_unsupported,
)

BINDING_TYPE = b"tls-server-end-point"
_PROOF_BYTES = 32
_WITHOUT_BINDING = {b"n": b"biws", b"y": b"eSws"}
"""The flag of the first message, and what the last one must say of it."""

# The usual ones, which need no second look.
_FIRST = re.compile(rb"(?:[ny]|(p)=tls-server-end-point),,n=[^,\0]*,r=[!-+\--~]+").fullmatch
_FINAL = re.compile(rb"c=([^,\0]+),r=([!-+\--~]+),p=[A-Za-z0-9+/]{43}=").fullmatch


def check_first(message: bytes, *, plus: bool, can_bind: bool) -> None:
    """See that a client-first-message can be read.

    Args:
      plus: the client chose SCRAM-SHA-256-PLUS. can_bind: it was offered.

    Raises:
      PgError: 08P01; 28000 for a downgrade; 0A000 for what PostgreSQL does not do either.
    """
    usual = _FIRST(message)
    if usual is not None and (usual[1] is not None) is plus and not (can_bind and message[:1] == b"y"):
        return
    _check_text(message)
    flag, position = message[:1], 1
    if flag in (b"n", b"y"):
        if plus:
            raise malformed_scram(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data."
            )
        if flag == b"y" and can_bind:
            raise channel_binding_downgraded()
        if message[1:2] != b",":
            raise malformed_scram(f'Comma expected, but found character "{_shown(message[1:2])}".')
        position = 2
    elif flag == b"p":
        if not plus:
            raise malformed_scram(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel "
                "binding data."
            )
        binding, position = _attribute(message, 0, b"p")
        if binding != BINDING_TYPE:
            raise protocol_violation(f'unsupported SCRAM channel-binding type "{_printable(binding)}"')
    else:
        raise malformed_scram(f'Unexpected channel-binding flag "{_shown(flag)}".')
    next_one = message[position : position + 1]
    if next_one == b"a":
        raise scram_unsupported("client uses authorization identity, but it is not supported")
    if next_one != b",":
        raise malformed_scram(f'Unexpected attribute "{_shown(next_one)}" in client-first-message.')
    position += 1
    if message[position : position + 1] == b"m":
        raise scram_unsupported("client requires an unsupported SCRAM extension")
    _, position = _attribute(message, position, b"n")
    nonce, position = _attribute(message, position, b"r")
    if not all(0x21 <= byte <= 0x7E for byte in nonce):
        raise protocol_violation("non-printable characters in SCRAM nonce")
    while position < len(message):
        _, _, position = _any_attribute(message, position)


def check_final(message: bytes, *, flag: bytes, nonce: bytes) -> None:
    """See that a client-final-message can be read, and belongs to this exchange.

    Args:
      flag: what the client-first-message began with. nonce: what the server said.

    Raises:
      PgError: 08P01.
    """
    usual = _FINAL(message)
    if usual is not None and usual[2] == nonce and usual[1] == _WITHOUT_BINDING.get(flag, usual[1]):
        return
    _check_text(message)
    binding, position = _attribute(message, 0, b"c")
    if binding != _WITHOUT_BINDING.get(flag, binding):
        raise protocol_violation("unexpected SCRAM channel-binding attribute in client-final-message")
    said, position = _attribute(message, position, b"r")
    name, value = b"", b""
    while name != b"p":
        name, value, position = _any_attribute(message, position)
    try:
        proof = base64.b64decode(value, validate=True)
    except binascii.Error:
        proof = b""
    if len(proof) != _PROOF_BYTES:
        raise malformed_scram("Malformed proof in client-final-message.")
    if position < len(message):
        raise malformed_scram("Garbage found at the end of client-final-message.")
    if said != nonce:
        raise scram_nonce_mismatch()


def _check_text(message: bytes) -> None:
    if not message:
        raise malformed_scram("The message is empty.")
    if b"\0" in message:
        raise malformed_scram("Message length does not match input length.")


def _attribute(message: bytes, position: int, name: bytes) -> tuple[bytes, int]:
    """The value of the attribute `name`, which must be here, and where the next one begins."""
    found = message[position : position + 1]
    if found != name:
        raise malformed_scram(f'Expected attribute "{name.decode()}" but found "{_shown(found)}".')
    return _value(message, position)


def _any_attribute(message: bytes, position: int) -> tuple[bytes, bytes, int]:
    found = message[position : position + 1]
    if not found:
        raise malformed_scram("Attribute expected, but found end of string.")
    if not (found.isalpha() and found.isascii()):
        raise malformed_scram(f'Attribute expected, but found invalid character "{_shown(found)}".')
    return found, *_value(message, position)


def _value(message: bytes, position: int) -> tuple[bytes, int]:
    if message[position + 1 : position + 2] != b"=":
        raise malformed_scram(f'Expected character "=" for attribute "{message[position : position + 1].decode()}".')
    end = message.find(b",", position)
    end = end if end >= 0 else len(message)
    return message[position + 2 : end], end + 1


def _shown(character: bytes) -> str:
    """One character as PostgreSQL shows it; its end of a string is a NUL."""
    byte = character[0] if character else 0
    return f"'{chr(byte)}'" if 0x21 <= byte <= 0x7E else f"0x{byte:02x}"


def _printable(text: bytes) -> str:
    """The beginning of a text, without what cannot be printed."""
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E else "?" for byte in text[:30])
