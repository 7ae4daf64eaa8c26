"""What a user must change in a data set or a config."""

from __future__ import annotations


class DataError(ValueError):
    """A data set cannot be learned or measured from as the config says."""

    def __init__(self, message: str) -> None:
        # A loader raises a worker's error again, with a traceback before its message.
        name = f'{type(self).__module__}.{type(self).__qualname__}: '
        super().__init__(message.rpartition(name)[2].rstrip())
