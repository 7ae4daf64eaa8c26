"""What a user must change in a data set or a config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Number of problems that are reported together.
_SHOWN = 50


class DataError(ValueError):
    """A data set cannot be learned or measured from as the config says.

    Attributes:
        messages: One for each problem; the text of the error has them all.
    """

    def __init__(self, message: str) -> None:
        # A loader raises a worker's error again, with a traceback before its message.
        name = f'{type(self).__module__}.{type(self).__qualname__}: '
        super().__init__(message.rpartition(name)[2].rstrip())
        self.messages = [str(self)]


class Problems:
    """Errors that are gathered, so that all of them can be reported at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Collect a :class:`DataError` of the block instead of raising it."""
        try:
            yield
        except DataError as error:
            self.add(*error.messages)

    def add(self, *messages: str) -> None:
        """Keep what is not known yet."""
        self.messages = list(dict.fromkeys([*self.messages, *messages]))

    def raise_all(self) -> None:
        """Raise what was gathered, if anything.

        Raises:
            DataError: Has every message.
        """
        if not self.messages:
            return
        if len(self.messages) == 1:
            raise DataError(self.messages[0])
        left_out = len(self.messages) - _SHOWN
        more = [f'and {left_out} more'] if left_out > 0 else []
        error = DataError(
            '\n- '.join([f'{len(self.messages)} problems:', *self.messages[:_SHOWN], *more])
        )
        error.messages = list(self.messages)
        raise error
