"""The one place where the version is written, and the oldest torch that it works with."""

__version__ = '0.1.0'

#: torch.library.register_autograd came with 2.4, torch.serialization.safe_globals and its
#: (function, name) pairs with 2.6.
MIN_TORCH = (2, 6)


def check_torch(version: str) -> None:
    """Demand a torch that this package works with.

    Not left to pip: it would exchange torch below an mmcv that was compiled for the old one.

    Raises:
        ImportError: torch is too old.
    """
    major, minor = (int(part) for part in version.split('.')[:2])
    if (major, minor) < MIN_TORCH:
        oldest = '.'.join(map(str, MIN_TORCH))
        raise ImportError(
            f'overlock_mm needs torch {oldest} or newer, found {version}. Install a newer torch '
            'and compile mmcv against it again, or use the environment that `make env` sets up.'
        )
