"""What clients from before are given when the defaults of new connections change."""

from __future__ import annotations

import pytest

from pooler.defaults import Defaults
from pooler.settings import Settings, from_startup
from pooler.sql.statement import DefaultChange, classify
from pooler.state import SessionState

SEEN = [("timezone", "UTC", "f"), ("work_mem", "4096", "f"), ("datestyle", "German", "t")]


def changes(text: str) -> tuple[DefaultChange, ...]:
    return classify(text.encode()).changes_defaults


@pytest.fixture
def defaults() -> Defaults:
    made = Defaults()
    made.read(SEEN, [("5", "0", "DateStyle=German")])
    return made


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("alter role me set timezone to 'Asia/Tokyo'", {"timezone": "UTC"}),
        ("alter role all set work_mem = 5", {"work_mem": "4096"}),
        ("alter user current_user in database shop set WORK_MEM to default", {"work_mem": "4096"}),
        ("alter database shop reset all", {"datestyle": "German"}),
        ("alter role me set app.tenant to 'a'", {}),
        ("alter role another set timezone to 'Asia/Tokyo'", None),
        ("alter database elsewhere set timezone to 'Asia/Tokyo'", None),
        ("alter role me in database elsewhere set timezone to 'Asia/Tokyo'", None),
    ],
)
def test_what_a_change_takes_from_clients_from_before_is_kept(
    defaults: Defaults, text: str, kept: dict[str, str] | None
) -> None:
    assert defaults.change(changes(text), "me", "shop") == kept


def test_who_came_between_two_changes_keeps_what_held_then(defaults: Defaults) -> None:
    defaults.change(changes("alter role me set timezone to 'Asia/Tokyo'"), "me", "shop")
    assert defaults.change(changes("alter role me reset timezone"), "me", "shop") == {"timezone": "Asia/Tokyo"}
    assert defaults.values["timezone"] == "UTC"


def test_a_default_under_another_is_not_what_holds(defaults: Defaults) -> None:
    assert defaults.change(changes("alter role me reset all"), "me", "shop") == {}
    assert defaults.values["datestyle"] == "German"
    assert defaults.change(changes("alter role me set datestyle = 'ISO'"), "me", "shop") == {"datestyle": "German"}
    assert defaults.change(changes("alter database shop set datestyle = 'SQL'"), "me", "shop") == {}
    assert defaults.change(changes("alter role me reset datestyle"), "me", "shop") == {"datestyle": "ISO"}
    assert defaults.values["datestyle"] == "SQL"


def test_a_change_past_pgnear_is_seen_once(defaults: Defaults) -> None:
    first, second = ("0", "10", "work_mem=9MB"), ("5", "0", "TimeZone=Asia/Tokyo")
    assert defaults.changed_elsewhere([first]) is None  # as it was found
    assert defaults.changed_elsewhere([first]) is None
    assert defaults.changed_elsewhere([first, second]) == {"timezone": "UTC"}
    assert defaults.changed_elsewhere([second]) == {"work_mem": "4096"}
    assert defaults.changed_elsewhere([second, ("5", "0", "app.x=1")]) == {}  # known to nobody, but new
    defaults.change(changes("alter role me set work_mem = 5"), "me", "shop")
    assert defaults.changed_elsewhere([first]) is None  # that is pgnear's own change


def test_what_is_kept_yields_to_the_startup_packet_and_to_set() -> None:
    state = SessionState(from_startup({"timezone": "UTC"}))
    state.current = state.settings = state.settings.with_change("work_mem", "SET work_mem TO 5")
    state.keep({"timezone": "kept", "work_mem": "kept", "datestyle": "kept"})
    assert state.startup.get("work_mem") == state.startup.get("datestyle") == "kept"
    assert state.settings is state.current is Settings.of({**dict(state.settings.items), "datestyle": "kept"})
    assert state.settings.get("work_mem") == "SET work_mem TO 5"
    assert state.settings.get("timezone") != "kept"
