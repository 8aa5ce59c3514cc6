"""Answers that are ready to be sent: from a client's bytes, as they came, to the bytes that answer them.

Lives here: the short way to an entry of the store that was served before. Not here: whether an answer may be cached
(`caching`), the entries (`store`), reading messages (`simple`, `extended`).

What makes it fast: a hit is one look-up by the request's own bytes, a comparison of clocks, and one send. Nothing is
parsed, no key is made, no answer is put together. That is right because a `View` is shared only by sessions for which
the same bytes mean the same; what a session may change about that (settings, reports, the catalog) is compared by
identity at each hit, and a request that names a statement is found under that statement, not under its client's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pooler.cache.entry import Entry, Namespace

MAX_REQUEST_BYTES = 2048
MAX_RESPONSE_BYTES = 16384
"""Longer requests and answers take the long way: what it costs to find them is little beside what they cost anyway."""

READY_BYTES = 300
"""What one takes beside its request and response: the object, its place in a dictionary, its entry's reference."""

MAX_VIEWS = 1000
"""Different views at a time; then all are forgotten."""


class Ready:
    """One entry's answer to one request.

    Attributes:
      response: all frames, ReadyForQuery outside a transaction included.
      namespace: where its hits are counted.
      prepares: the statement that the request prepares without a name, or None.
    """

    __slots__ = ("entry", "namespace", "prepares", "response")

    def __init__(self, entry: Entry, namespace: Namespace, response: bytes, prepares: Any) -> None:
        self.entry = entry
        self.namespace = namespace
        self.response = response
        self.prepares = prepares


class View:
    """The answers that are ready for all sessions of one kind.

    Attributes:
      catalog, reports, settings: what must still be the case.
    """

    __slots__ = ("answers", "catalog", "reports", "settings")

    def __init__(self, reports: object, settings: object) -> None:
        self.catalog: object = None
        self.reports = reports
        self.settings = settings
        self.answers: dict[bytes, Ready] = {}


class Shelf:
    """All views of the process.

    Args:
      max_bytes: of requests and responses together; when it is full, the oldest go: what is hot is back at once.
    """

    __slots__ = ("_views", "bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._views: dict[tuple[str, str, object, object], View] = {}

    def view(self, database: str, user: str, settings: object, reports: object, catalog: object) -> View:
        """What is ready for sessions that agree in all of this; of another catalog, nothing is."""
        key = (database, user, settings, reports)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                self.clear()
            view = self._views[key] = View(reports, settings)
        if view.catalog is not catalog:
            self._empty(view)
            view.catalog = catalog
        return view

    def put(self, view: View, request: bytes, ready: Ready) -> None:
        """From now on `request` is answered by `ready`, while its entry lives."""
        size = len(request) + len(ready.response)
        if len(request) > MAX_REQUEST_BYTES or len(ready.response) > MAX_RESPONSE_BYTES or size > self.max_bytes:
            return
        self._take(view, request)
        self.bytes += size + READY_BYTES
        while self.bytes > self.max_bytes and view.answers:
            self._take(view, next(iter(view.answers)))
        if self.bytes > self.max_bytes:  # it is other views that take the room
            self.clear()
            return
        view.answers[request] = ready
        place = (view, request)
        places = ready.entry.ready
        if places is None:
            ready.entry.ready = [place]
        elif place not in places:
            places.append(place)

    def forget(self, entry: Entry) -> None:
        """`entry` is no more."""
        places, entry.ready = entry.ready, None
        for view, request in places or ():
            ready = view.answers.get(request)
            if ready is not None and ready.entry is entry:
                self._take(view, request)

    def clear(self) -> None:
        for view in self._views.values():
            self._empty(view)
            view.catalog = None  # sessions that have it ask for another
        self._views.clear()
        self.bytes = 0

    def _take(self, view: View, request: bytes) -> None:
        ready = view.answers.pop(request, None)
        if ready is not None:
            self.bytes -= len(request) + len(ready.response) + READY_BYTES

    def _empty(self, view: View) -> None:
        for request in list(view.answers):
            self._take(view, request)
