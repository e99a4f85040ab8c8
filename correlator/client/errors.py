"""The errors of a client of the daemon's API, and the texts that an operator sees."""

from __future__ import annotations

import os
import ssl as tls
from http import HTTPStatus

from correlator.client.messages import MAX_MESSAGE
from correlator.errors import CorrelatorError
from correlator.model.messages import CloseCode


class Unreachable(CorrelatorError):
    """The daemon does not answer, or cannot answer at the moment. A retry may succeed."""


class Refused(CorrelatorError):
    """The daemon refuses the connection. A retry without another token does not succeed."""


class NotACorrelator(CorrelatorError):
    """The server at this URL is no correlator, or has an incompatible version."""


class Failures:
    """Makes the errors of the daemon at `url`. `token`: empty if the client has none."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token

    def unreachable(self, error: Exception) -> Unreachable:
        cause = getattr(error, "os_error", None) or error
        match cause:
            case TimeoutError():
                reason = "no answer in time"
            case OSError(errno=int(number)) if number > 0 and not isinstance(cause, tls.SSLError):
                reason = os.strerror(number)  # asyncio replaces its text
            case _:
                reason = getattr(cause, "strerror", None) or str(cause)
        return Unreachable(
            f"{self._url} cannot be reached: {reason}\n"
            "start it with `correlator run`, or say where it is with --url or CORRELATOR_URL"
        )

    def not_a_correlator(self, why: str) -> NotACorrelator:
        return NotACorrelator(f"{self._url} answers, but not as a correlator of a compatible version: {why}")

    def of_handshake(self, status: int) -> CorrelatorError:
        """The error for a websocket handshake that was answered with this HTTP status."""
        if status == HTTPStatus.UNAUTHORIZED:
            return self._token_refused()
        if status == HTTPStatus.FORBIDDEN:
            return Refused(f"{self._url} refuses: this host name or origin is not allowed there")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            return Unreachable(f"{self._url} cannot serve now (HTTP {status})")
        return self.not_a_correlator(f"it answered a websocket with HTTP {status}")

    def of_close_code(self, code: int | None) -> CorrelatorError | None:
        """The error for a close code that a retry cannot fix, else None. See docs/protocol.md."""
        match code:
            case CloseCode.UNAUTHORISED:
                return self._token_refused()
            case CloseCode.FORBIDDEN:
                return Refused(f"{self._url} refuses: it does not know this token, or this host is not allowed there")
            case 1009:
                return self.not_a_correlator(f"one of its messages is larger than {MAX_MESSAGE >> 20} MiB")
            case CloseCode.BAD_PROTOCOL:
                return self.not_a_correlator("it rejected our message, so it may be another version")
            case _:
                return None

    def of_response(self, status: int, content_type: str, detail: object) -> CorrelatorError:
        """The error for a REST response. `detail`: that of problem+json; None for any other body."""
        if status == HTTPStatus.UNAUTHORIZED:
            return self._token_refused()
        if status == HTTPStatus.FORBIDDEN and detail is not None:
            return Refused(f"{self._url} refuses: {detail}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unreachable(f"{self._url} cannot answer: {detail or f'HTTP {status}'}")
        return self.not_a_correlator(f"HTTP {status}, {content_type}")

    def _token_refused(self) -> Refused:
        what = "does not know this token" if self._token else "asks for a token"
        return Refused(f"{self._url} {what}: give one with --token-file or CORRELATOR_TOKEN")
