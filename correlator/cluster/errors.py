"""What can go wrong in a cluster."""

from correlator.errors import CorrelatorError


class ClusterUnavailable(CorrelatorError):
    """NATS cannot be reached, or did not answer in time. A state, not a failure: try again.

    The outcome of a request that raises this is unknown: NATS may have done what it was asked.
    """


class NoAnswer(ClusterUnavailable):
    """Nobody answered a request in time."""


class NoResponder(ClusterUnavailable):
    """Nobody subscribes the subject of a request, as NATS says at once."""


class Unacknowledged(ClusterUnavailable):
    """The acknowledgement of a write did not come: it may have been stored or not. Write it again."""


class Refused(CorrelatorError):
    """NATS answered a request with an error. `code`: NATS's own number of it (`err_code`), 0 if there is none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Fenced(Refused):
    """A write was refused as a whole, because another collector owns the instance, or the owner key is gone."""
