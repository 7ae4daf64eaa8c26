"""Selection of the implementation that runs a call.

Operators that share their implementations form a family: :class:`Backends`, the table of a
family's backends. A backend is a module with the functions that the family asks for (its
``backends.py`` lists them) and ``why_not(call)``, which returns every reason why it cannot run a
call. It registers itself when it is imported, and imports nothing heavy before it runs.
"""

import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from overlock_mm.ops.call import Call
from overlock_mm.ops.preferences import preferred
from overlock_mm.ops.self_test import Problem, is_watched, why_not_trusted

logger = logging.getLogger('overlock_mm')


@dataclass(frozen=True)
class Backend:
    """One implementation of a family's operators.

    Attributes:
        name: What callers ask for.
        why_not: Lists every reason why it cannot run a call.
        functions: The functions that the family asks for, by name.
    """

    name: str
    why_not: Callable[[Any], list[str]]
    functions: Mapping[str, Callable[..., Any]]


class Backends(Mapping[str, Backend]):
    """The backends of a family of operators, in the order of automatic choice.

    Args:
        family: Name of the family.
        operators: Names of its operators.
        functions: Names of the functions that a backend must have.
        call_type: Describes a call to one of the operators.
        reference_is_slow: Whether it deserves a warning that 'reference' runs a call.
        problem: What a GPU backend must solve before it is used.
    """

    def __init__(
        self,
        family: str,
        operators: Iterable[str],
        functions: Iterable[str],
        call_type: type[Call] = Call,
        reference_is_slow: bool = False,
        problem: Problem | None = None,
    ) -> None:
        self.family = family
        self.problem = problem
        self.functions = tuple(functions)
        self.call_type = call_type
        self.reference_is_slow = reference_is_slow
        self._backends: dict[str, Backend] = {}
        _FAMILIES[family] = self
        _FAMILY_OF.update(dict.fromkeys(operators, self))

    def register(
        self, name: str, why_not: Callable[[Any], list[str]], *functions: Callable[..., Any]
    ) -> None:
        """Add a backend after the existing ones.

        Args:
            name: What callers ask for.
            why_not: Lists every reason why it cannot run a call.
            *functions: The functions that the family asks for, under their own names.

        Raises:
            ValueError: The name is taken, or a function is missing or unknown.
        """
        by_name = {function.__name__: function for function in functions}
        if name in self._backends:
            raise ValueError(f'The family {self.family} has a backend {name!r} already.')
        if set(by_name) != set(self.functions):
            raise ValueError(
                f'A backend of the family {self.family} must have the functions '
                f'{", ".join(self.functions)}; {name!r} has {", ".join(by_name)}.'
            )
        self._backends[name] = Backend(name, why_not, MappingProxyType(by_name))
        _selected.clear()

    def __getitem__(self, name: str) -> Backend:
        return self._backends[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)

    def check(self, name: str | None) -> None:
        """Raise a ValueError unless the name is that of a backend or None."""
        if name is not None and name not in self._backends:
            known = ', '.join(self._backends)
            raise ValueError(f'backend must be None or one of: {known}; got {name!r}.')

    def why_not(self, name: str, call: Call) -> list[str]:
        """Return all reasons why a backend cannot run a call; without reasons it can."""
        reasons = self._backends[name].why_not(call)
        if call.transformed and name != 'reference':
            reasons = [
                'it has no forward-mode derivative and does not run under torch.func.grad, as only '
                "backend 'reference' does.",
                *reasons,
            ]
        if not reasons and name != 'reference' and self.problem is not None:
            functions, defined = self[name].functions, self['reference'].functions
            untrusted = why_not_trusted(self.family, name, self.problem, functions, defined, call)
            return [] if untrusted is None else [untrusted]
        return reasons

    def chosen(self, name: str | None) -> str | None:
        """Return the backend that the call or else :func:`use_backend` chooses, or None."""
        return _chosen.get().get(self.family) if name is None else name

    def select(self, call: Call, name: str | None = None) -> Backend:
        """Return the backend that runs a call.

        Args:
            call: The call.
            name: The backend to use and no other; None takes the one of :func:`use_backend`, or
                else that of :mod:`overlock_mm.ops.preferences`, or else the first that can, and
                logs once which one it is.

        Raises:
            ValueError: No backend has this name.
            RuntimeError: The forced backend cannot run the call; states all reasons.
        """
        self.check(name)
        name = self.chosen(name)
        # On a GPU, asking all backends takes longer than launching a kernel, and they never change
        # their minds.
        key = (self.family, call, name, preferred(call))
        backend = _selected.get(key)
        if backend is None:
            backend = self._select(call, name)
            if call.device.type == 'cuda' and not is_watched():  # which puts the self-test off
                _selected[key] = backend
        return backend

    def _select(self, call: Call, name: str | None) -> Backend:
        if name is not None:
            reasons = self.why_not(name, call)
            if reasons:
                raise RuntimeError(
                    f'Backend {name!r} cannot run {call.op} here: {_listed(reasons)} '
                    'Pass backend=None to let overlock_mm choose.'
                )
            return self._backends[name]

        refusals: dict[str, list[str]] = {}
        for name in self.in_order(call):
            reasons = self.why_not(name, call)
            if not reasons:
                self._log_choice(call, name, refusals)
                return self._backends[name]
            refusals[name] = reasons
        raise RuntimeError(f'No backend can run {call}: {refusals}')  # the reference always can

    def in_order(self, call: Call) -> list[str]:
        """Names in the order of automatic choice: first what was measured to be the fastest."""
        first = preferred(call)
        return sorted(self, key=lambda name: name != first)

    def _log_choice(self, call: Call, name: str, refusals: dict[str, list[str]]) -> None:
        """Log a choice once per operator, kind of device and backend, and what is faster."""
        topic = (call.op, call.device.type, name, call.transformed)
        if topic in _logged:
            return
        _logged.add(topic)
        if name != 'reference' or not self.reference_is_slow:
            logger.info('%s on %s runs on backend %r.', call.op, call.device.type, name)
            return
        # Two backends of one binary have the same reasons.
        reasons = dict.fromkeys(reason for listed in refusals.values() for reason in listed)
        logger.warning(
            '%s on %s runs on the slow backend %r, because %s cannot run it: %s',
            call.op,
            call.device.type,
            name,
            ', '.join(refusals),
            _listed(list(reasons)),
        )


_FAMILIES: dict[str, Backends] = {}
_FAMILY_OF: dict[str, Backends] = {}
_NONE_CHOSEN: Mapping[str, str] = MappingProxyType({})
_chosen: ContextVar[Mapping[str, str]] = ContextVar('overlock_mm_backends', default=_NONE_CHOSEN)
_logged: set[tuple[str, str, str, bool]] = set()
#: Family, call, forced and preferred backend -> the selected one.
_selected: dict[tuple[str, Call, str | None, str | None], Backend] = {}


def load_backends(package: str, *names: str) -> None:
    """Import a family's backends, which register themselves, in the order of automatic choice."""
    for name in names:
        importlib.import_module(f'{package}.{name}_backend')


def available_backends(call: Call | str = 'contmix') -> dict[str, list[str]]:
    """Return, for each backend, the reasons why it cannot run a call.

    Args:
        call: The call in question; or the name of an operator, for a typical call of it.

    Returns:
        Name of each backend, in the order of automatic choice, and all reasons why it
        cannot run the call. A backend without reasons can.

    Raises:
        ValueError: There is no operator of this name.

    Example:
        >>> available_backends()['reference']
        []
    """
    op = call if isinstance(call, str) else call.op
    if op not in _FAMILY_OF:
        raise ValueError(f'The operator must be one of: {", ".join(_FAMILY_OF)}; got {op!r}.')
    family = _FAMILY_OF[op]
    call = family.call_type.typical(call) if isinstance(call, str) else call
    return {name: family.why_not(name, call) for name in family.in_order(call)}


@contextmanager
def use_backend(**backends: str | None) -> Iterator[None]:
    """Choose the backends of all calls in a block that do not choose one themselves.

    Like a backend that is named in the call, a chosen one never falls back. The choice holds for
    the current thread or asynchronous task. A gradient uses the backend of its forward call.
    Compiled graphs (``torch.compile``) follow it when they run. On a GPU their gradients are
    computed in a thread of autograd's, where it does not hold: name the backend in the call.

    Args:
        **backends: Family of operators (``contmix``, ``depthwise``, ``pointwise``) to the name of
            a backend, or to None for automatic choice.

    Raises:
        ValueError: There is no such family or backend.

    Example:
        >>> with use_backend(contmix='reference', depthwise='reference'):
        ...     pass  # every operator by its definition
    """
    for family, name in backends.items():
        if family not in _FAMILIES:
            raise ValueError(
                f'The family of operators must be one of: {", ".join(_FAMILIES)}; got {family!r}.'
            )
        _FAMILIES[family].check(name)
    token = _chosen.set({**_chosen.get(), **backends})  # type: ignore[dict-item]
    try:
        yield
    finally:
        _chosen.reset(token)


def any_chosen() -> bool:
    """Whether :func:`use_backend` holds for some family."""
    return bool(_chosen.get())


def _listed(reasons: list[str]) -> str:
    return ' '.join(f'({number}) {reason}' for number, reason in enumerate(reasons, 1))
