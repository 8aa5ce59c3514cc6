"""Reading an origin's password from a file or a command.

Not here: when it is read, and what becomes of a new one (`pooler.ceremony.rotation`).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 65536
"""A longer text is no password."""

Stamp = tuple[int, ...]
"""What tells one state of a file from another."""


class PasswordUnavailable(ValueError):
    """A source has no password to give now. The message says why, and has nothing of the password."""


@dataclass(frozen=True, slots=True)
class PasswordSource:
    """A file, or else a command with its arguments, which may take `timeout` seconds."""

    file: Path | None
    command: tuple[str, ...] | None
    timeout: float

    def read(self) -> str:
        """The password that it gives now; may take `timeout`.

        Raises:
          PasswordUnavailable: it gives none.
        """
        if self.file is not None:
            return _password(self._of_file(self.file), f"password_file {self.file}")
        assert self.command is not None
        return _password(self._of_command(self.command), f"password_command {self.command[0]}")

    def stamp(self) -> Stamp | None:
        """The file's state: another one when it was written or replaced. None where there is no file."""
        return stamp_of(self.file)

    def _of_file(self, file: Path) -> bytes:
        try:
            with file.open("rb") as opened:
                return opened.read(MAX_BYTES + 1)
        except OSError as error:
            raise PasswordUnavailable(f"password_file {file} cannot be read: {error.strerror}") from None

    def _of_command(self, command: tuple[str, ...]) -> bytes:
        name = f"password_command {command[0]}"
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may tell too much
                start_new_session=True,
            )
        except OSError as error:
            raise PasswordUnavailable(f"{name} cannot be run: {error.strerror}") from None
        try:
            output, _ = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise PasswordUnavailable(
                f"{name} did not end within {self.timeout:g} s (password_command_timeout)"
            ) from None
        if process.returncode:
            raise PasswordUnavailable(f"{name} ended with status {process.returncode}")
        return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """It and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _password(raw: bytes, name: str) -> str:
    if len(raw) > MAX_BYTES:
        raise PasswordUnavailable(f"{name} gives more than {MAX_BYTES} bytes")
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise PasswordUnavailable(f"{name} gives what is not UTF-8") from None
    if not text or "\0" in text or "\n" in text:
        raise PasswordUnavailable(f"{name} gives {'no password' if not text else 'more than one line'}")
    return text


def stamp_of(file: Path | None) -> Stamp | None:
    """The state of the file that `file` leads to now, through links; None where there is none."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def read_all(sources: Mapping[str, PasswordSource]) -> dict[str, str]:
    """The password of each source.

    Raises:
      PasswordUnavailable: one gives none.
    """
    return {name: source.read() for name, source in sources.items()}
