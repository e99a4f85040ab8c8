"""What clients see of the source: whether the database answers, and how far loading is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from correlator.model.messages import DatabaseState

UNREACHABLE = "the database is unreachable"


class Status(ABC):
    """The state of the database behind the published jobs. `error` is for the operator, `public_error` for clients."""

    def __init__(self) -> None:
        self.database: DatabaseState = "down"
        self.error: str | None = None
        self.loading = True
        """True until everything is loaded: not ready yet."""
        self.reading: tuple[int, int] | None = None
        """(read, to read) while loading takes longer than usual."""
        self._subscribers: dict[Callable[[], None], None] = {}
        self.public_error: str | None = None
        self._what = UNREACHABLE

    @property
    @abstractmethod
    def lag_seconds(self) -> float:
        """Seconds since the database last answered in full; 0 while it is live, and before the first answer."""

    @property
    def problem(self) -> str:
        """Why the database is not live, for the operator."""
        unreachable = self._what == UNREACHABLE
        return f"{'waiting for the database' if self.loading and unreachable else self._what}: {self.error}"

    def subscribe(self, on_status: Callable[[], None]) -> Callable[[], None]:
        """Call `on_status` each time the database's state changes. Returns a function that unsubscribes it."""
        self._subscribers[on_status] = None
        return lambda: self._subscribers.pop(on_status, None)

    def set_state(
        self, state: DatabaseState, error: str | None = None, public: str | None = None, what: str = UNREACHABLE
    ) -> None:
        """Set the database's state. `error` is for the operator, `public` for clients; None: the same text.

        `what`: what it means that the database is not live.
        """
        if (state, error, what) == (self.database, self.error, self._what):
            return
        self.database, self.error, self._what = state, error, what
        self.public_error = public if public is not None else error
        for on_status in list(self._subscribers):
            on_status()

    def describe_database(self) -> dict[str, Any]:
        """Describe the database for /health/ready."""
        part: dict[str, Any] = {
            "ok": self.database == "live",
            "state": self.database,
            "lag_seconds": self.lag_seconds,
            "error": self.public_error,
        }
        if self.reading is not None or self.loading:
            done, total = self.reading or (0, 0)
            part["loading"] = {"done": done, "total": total}
        return part
