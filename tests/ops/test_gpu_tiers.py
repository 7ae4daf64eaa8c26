"""``make test-gpu``: a few tests first, all others after them, the sanitizers apart."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ('gpu', 'smoke', 'large', 'sanitizer')


def marks_of_tests():
    """The names of the marks of each test, by module and name."""
    found = {}
    for path in sorted((ROOT / 'tests/ops/gpu').glob('test_*.py')):
        module = importlib.import_module(f'tests.ops.gpu.{path.stem}')
        for name, test in vars(module).items():
            if name.startswith('test_'):
                marks = (*module.pytestmark, *getattr(test, 'pytestmark', ()))
                found[f'{path.stem}.{name}'] = {mark.name for mark in marks}
    return found


def test_each_test_for_a_gpu_is_in_one_tier():
    tests = marks_of_tests()
    lines = (
        (ROOT / 'Makefile').read_text().split('\ntest-gpu:')[1].split('\n\n# Sanitizers need')[0]
    )
    expressions = re.findall("-m pytest .*-m '?([^'/]+?)'?(?: tests/ops)?$", lines, re.MULTILINE)
    # An expression of pytest's is one of Python's.
    tiers = [
        {test for test, has in tests.items() if eval(e, {}, {name: name in has for name in NAMES})}
        for e in expressions
    ]
    first, others, large, sanitizers = tiers
    assert sum(map(len, tiers)) == len(tests)
    assert first | others | large | sanitizers == set(tests)
    assert {'test_contmix.test_autocast', 'test_depthwise.test_depthwise_of_one_size'} <= first
    assert {'test_contmix.test_contmix', 'test_depthwise.test_depthwise'} <= others
    assert all('beyond_2_31' in test for test in large)
    assert sanitizers == {'test_sanitizers.test_compute_sanitizer_finds_nothing'}
