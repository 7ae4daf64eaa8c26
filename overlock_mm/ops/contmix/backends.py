"""The implementations behind the operators, and who may run a call."""

from types import ModuleType

from overlock_mm.ops.contmix import reference

#: Name of a backend -> module with `contmix` and `neighborhood_aggregate`, best first.
BACKENDS: dict[str, ModuleType] = {'reference': reference}


def available_backends() -> tuple[str, ...]:
    """Names that the ``backend`` argument takes, in the order of automatic choice."""
    return tuple(BACKENDS)


def select_backend(backend: str | None) -> ModuleType:
    """The module of a forced backend, or of the first one where None is given.

    Raises:
        ValueError: No backend has this name.
    """
    if backend is None:
        return next(iter(BACKENDS.values()))
    if backend not in BACKENDS:
        known = ', '.join(available_backends())
        raise ValueError(f'backend must be None or one of: {known}; got {backend!r}.')
    return BACKENDS[backend]
