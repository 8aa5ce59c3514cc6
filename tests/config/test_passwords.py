"""Reading passwords from files and commands: what is one, and what is said of what is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

import config
from config.passwords import PasswordSource, PasswordUnavailable, stamp_of
from tests.support.waiting import until


def of_command(*command: str, timeout: float = 10.0) -> str:
    return PasswordSource(None, command, timeout).read()


@pytest.mark.parametrize("raw", [b"secret", b"secret\n", b"secret\r\n"])
def test_a_file_holds_the_password_and_perhaps_the_end_of_its_line(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(raw)
    assert PasswordSource(file, None, 1).read() == "secret"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no password"),
        (b"\n", "no password"),
        (b"one\ntwo", "more than one line"),
        (b"a\0b", "more than one line"),
        (b"\xff", "not UTF-8"),
        (b"x" * 70000, "more than 65536 bytes"),
    ],
)
def test_what_is_no_password_is_refused_without_showing_it(tmp_path: Path, raw: bytes, says: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(raw)
    with pytest.raises(PasswordUnavailable, match=says) as caught:
        PasswordSource(file, None, 1).read()
    assert "one" not in str(caught.value).replace("more than one line", "")


def test_no_shell_sees_the_command() -> None:
    assert of_command("echo", "$HOME; `id`") == "$HOME; `id`"


def test_a_command_that_fails_says_its_status_and_nothing_of_what_it_printed() -> None:
    with pytest.raises(PasswordUnavailable) as caught:
        of_command("sh", "-c", "echo secret; echo secret >&2; exit 3")
    assert str(caught.value) == "password_command sh ended with status 3"


def test_a_command_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """A child that holds the pipe open would otherwise be waited for."""
    pid = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(PasswordUnavailable, match=r"within 0\.3 s \(password_command_timeout\)"):
        of_command("sh", "-c", f"sleep 60 & echo $! > {pid}; wait", timeout=0.3)
    assert time.monotonic() - began < 10
    child = int(pid.read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes replaces mounted secrets."""
    for name in ("one", "two"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, ns=(1, 1))
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to("one")
    before = stamp_of(link)
    other.symlink_to("two")
    other.rename(link)
    assert stamp_of(link) != before


def test_a_password_has_one_source(tmp_path: Path) -> None:
    file = tmp_path / "pgnear.toml"
    file.write_text(
        'origin = "postgresql://app:secret@localhost/shop"\npassword_file = "x"\npassword_command = "y z"\n'
    )
    with pytest.raises(config.ConfigError) as caught:
        config.load(file=file, environ={})
    assert "gives a password in the URL and password_file and password_command; give one of them" in str(caught.value)
    file.write_text('origin = "postgresql://app@localhost/shop"\npassword_command = "y \'z w\'"\nadmin_users = "app"')
    loaded = config.load(file=file, environ={})
    assert loaded.password_sources()["shop"].command == ("y", "z w")
    assert loaded.targets({"shop": "new"})["shop"].password == "new"
