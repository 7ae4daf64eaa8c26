"""The page of measured exports belongs to its figures."""

import json

import pytest

from tools.dev import measure_exports


def test_the_page_is_made_of_the_results():
    results = json.loads(measure_exports.RESULTS.read_text())
    assert measure_exports.PAGE.read_text() == measure_exports.page_of(results)


def test_rows_of_another_machine_are_not_kept():
    tasks = json.loads(measure_exports.RESULTS.read_text())['tasks']
    assert measure_exports.kept_tasks(measure_exports.RESULTS, {}) == tasks
    with pytest.raises(ValueError, match='another machine or with other versions'):
        measure_exports.kept_tasks(measure_exports.RESULTS, {'processor': 'abacus'})
