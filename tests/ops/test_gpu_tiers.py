"""``make test-gpu``: a few tests first, all others after them, the sanitizers apart."""

import re
from pathlib import Path

from tests.ops import test_gpu

ROOT = Path(__file__).resolve().parents[2]
NAMES = ('gpu', 'smoke', 'large', 'sanitizer')


def marks(test):
    return {mark.name for mark in (*test_gpu.pytestmark, *getattr(test, 'pytestmark', ()))}


def test_each_test_for_a_gpu_is_in_one_tier():
    tests = {name: marks(f) for name, f in vars(test_gpu).items() if name.startswith('test_')}
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
    assert {'test_contmix_of_two_sizes', 'test_depthwise_of_one_size', 'test_autocast'} <= first
    assert {'test_contmix', 'test_contmix_at_full_size'} <= others
    assert all('beyond_2_31' in test for test in large)
    assert sanitizers == {'test_compute_sanitizer_finds_nothing'}
