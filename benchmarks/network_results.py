"""What the pages and pictures take from the stored results of whole networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Measured = dict[str, Any]


def forms_for_inference(result: dict[str, Any]) -> list[str]:
    """Networks of a case, in the form in which a user would run them."""
    names = dict.fromkeys(measured['of'] for measured in result['candidates'].values())
    return [name for name in names if not name.endswith('training form')]


def fastest(result: dict[str, Any], name: str, precision: str) -> Measured | None:
    """The entry of the runtime that is fastest for a network, None if none was measured."""
    return min(
        (
            measured
            for measured in result['candidates'].values()
            if (measured['of'], measured['precision']) == (name, precision)
            and 'median_ms' in measured
        ),
        key=lambda measured: measured['median_ms'],
        default=None,
    )


def precisions(results: Iterable[dict[str, Any]]) -> list[str]:
    """All that were measured, in the order of the results."""
    return list(
        dict.fromkeys(
            measured['precision'] for r in results for measured in r['candidates'].values()
        )
    )


def setting(machine: dict[str, Any]) -> str:
    """How many threads ran, and which clock."""
    threads = machine['threads']
    clock = ', time of the processor' if machine.get('clock') == 'cpu' else ''
    return f'{threads} thread{"s" if threads > 1 else ""}{clock}'


def runtimes(results: Iterable[dict[str, Any]]) -> list[str]:
    """All that were measured, in the order of the results."""
    return list(
        dict.fromkeys(measured['runtime'] for r in results for measured in r['candidates'].values())
    )


def version(machine: dict[str, Any], name: str) -> str:
    """The version of a package without its build."""
    return machine['versions'][name].partition('-')[0].partition('+')[0]
