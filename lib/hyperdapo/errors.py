"""The errors that a user can mend. Each message names what is wrong and the command or edit that fixes it."""

import difflib
from collections.abc import Iterable


class HyperdapoError(Exception):
    """Base of every error that this package raises on purpose."""


class ParameterError(HyperdapoError):
    """A parameter is unknown, misspelt or out of range."""


class MissingInputError(HyperdapoError):
    """A file that an earlier stage makes is not there."""


class DataError(HyperdapoError):
    """The data are damaged, empty or contradict themselves."""


class DiskFullError(HyperdapoError):
    """A disk has no room left, or does not let us write."""


class EndpointError(HyperdapoError):
    """The market data endpoint is down, refuses the key, or keeps failing."""


class ModelError(HyperdapoError):
    """A model or adapter is absent or does not fit its base."""


class TrainingError(HyperdapoError):
    """Training cannot go on: the message names the parameter to change."""


class OrderError(HyperdapoError):
    """An order cannot be replayed: the message names its row."""


class RequestError(HyperdapoError):
    """What a client of the service sent cannot be answered; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class StaleBookError(RequestError):
    """The book of a request is too old to decide on."""


class BusyError(RequestError):
    """The service has as much to do as it takes on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


class HostError(HyperdapoError):
    """A rented host refuses, lacks something, or its stage failed."""


class HostUnreachableError(HostError):
    """The host does not answer, or the connection to it was lost: it may answer later."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'X'?)`, whatever its case, or nothing where no known name is near."""
    spelled = {other.casefold(): other for other in known}
    match = difflib.get_close_matches(name.casefold(), list(spelled), n=1, cutoff=0.5)
    return f" (did you mean {spelled[match[0]]!r}?)" if match else ""
