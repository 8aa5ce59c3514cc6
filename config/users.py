"""Who may connect to pgnear: `[users]`.

Not here: how they prove it (`pooler.ceremony.verifiers`), and the settings that hold for all of them (`model`).
"""

from __future__ import annotations

import re

from pydantic import Field, SecretStr, model_validator

from config.values import Pooling, Section

_VERIFIER = re.compile(r"SCRAM-SHA-256\$[1-9][0-9]*:[A-Za-z0-9+/]+=*\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=")


class User(Section):
    """A user that may connect to pgnear."""

    password: SecretStr | None = Field(
        None,
        description="The user's password. For a user whose password may stand in the configuration.",
        examples=["correct horse battery staple"],
    )
    verifier: SecretStr | None = Field(
        None,
        description="Instead of the password, its SCRAM verifier, as the origin has it in pg_authid.rolpassword. For a "
        "password that pgnear should not know.",
        examples=[
            "SCRAM-SHA-256$4096:61LftshPYyJcSb+qWQAkdQ==$ftKwzawJUtxbT2wN89/WY3ntchTbrgp09xaKVZ/LY6A=:"
            "2Bb3DAJ+IplHFmoZdD1SJ5KIvz0/Fkv3/Hu9V9MrJSI="
        ],
    )

    pooling: Pooling | None = Field(
        None,
        description="The user's own mode; unset, the database's. Set it for a user whose sessions need another one.",
        examples=["session"],
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> User:
        if (self.password is None) == (self.verifier is None):
            raise ValueError("give either a password or a verifier")
        if self.password is not None and not self.password.get_secret_value():
            raise ValueError("the password is empty, and no client would send that")
        if self.verifier is not None and not _VERIFIER.fullmatch(self.verifier.get_secret_value()):
            raise ValueError("a verifier looks like SCRAM-SHA-256$4096:salt$StoredKey:ServerKey")
        return self
