"""Backends are measured, and what was measured is used. The CPU stands for a GPU."""

import json
import logging

import pytest
import torch

from overlock_mm import doctor, tuning
from overlock_mm.ops import contmix, preferences
from overlock_mm.ops.contmix.backends import BACKENDS, Call
from overlock_mm.ops.selection import Backend
from tests.ops import helpers
from tests.ops.helpers import Shape
from tests.ops.test_cpu_backends import needs_extension

CPU = torch.device('cpu')

pytestmark = needs_extension


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path):
    """Where measurements go, and nothing read yet."""
    path = tmp_path / 'cache/backends.json'
    monkeypatch.setenv('OVERLOCK_BACKENDS', str(path))
    preferences.stored.cache_clear()
    yield path
    preferences.stored.cache_clear()


@pytest.fixture
def tensors():
    return helpers.contmix_arguments(Shape(1, 1, 4, 4, 5, 5, 3), torch.float32)


@pytest.fixture
def problem(tensors):
    return tuning.Problem(contmix, (*tensors, 3), {'scale': 0.5})


def call(elements):
    return Call('contmix', CPU, torch.float32, 13, elements=elements)


def test_the_calls_of_a_network_are_found():
    problems = tuning.problems_of('xt', (64, 96), 2)
    kinds = {(p.operator.__name__, p.kernel_size) for p in problems}
    assert {('contmix', 13), ('contmix', 7), ('depthwise_conv2d_norm', 3)} <= kinds
    assert all(p.shape[0] == 2 and p.arguments[0].device.type == 'meta' for p in problems)


def test_the_self_test_reads_memory_as_a_network_does():
    """Triton compiles for strides of 1 and multiples of 16: other binaries would be tested."""

    def kinds(arguments):
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        return [[1 if n == 1 else n % 16 == 0 for n in x.stride()] for x in tensors]

    class Stop(Exception):
        pass

    def seen(arguments):
        raise Stop(kinds(arguments))

    arch = dict(channels=(8, 8, 256, 512), depths=(1, 1, 1, 1, 1, 1), groups=(4, 8))
    calls = [p for p in tuning.problems_of(arch, (224, 224), 2) if p.operator is contmix]
    assert {p.kernel_size for p in calls} == {5, 7, 13}
    for problem in calls:
        with pytest.raises(Stop) as stop:
            BACKENDS.problem(
                {'contmix_forward': seen}, problem.call(CPU, torch.half), CPU, torch.half
            )
        assert stop.value.args[0] == kinds(problem.arguments)


def test_right_backends_are_timed_and_others_explained(problem):
    results = tuning.measure(problem, CPU, torch.float32)
    assert list(results) == list(BACKENDS)
    assert results['cpu'].milliseconds > 0 and results['reference'].milliseconds > 0
    assert 'CUDA device' in results['cuda'].trouble
    assert tuning.best_of(results) in ('cpu', 'reference')


@pytest.mark.parametrize(
    ('change', 'trouble'),
    [
        (lambda x: x * 1.01, 'differs by'),
        (lambda x: x * torch.nan, 'differs by nan'),
        (lambda x: x + 1e-6 * torch.rand_like(x), 'two runs gave different bits'),
    ],
)
def test_a_wrong_backend_is_not_the_fastest(problem, change, trouble, monkeypatch):
    right = BACKENDS['cpu']

    def wrong(arguments):
        out, logsumexp = right.functions['contmix_forward'](arguments)
        return change(out), logsumexp

    functions = {**right.functions, 'contmix_forward': wrong}
    monkeypatch.setitem(BACKENDS._backends, 'cpu', Backend('cpu', right.why_not, functions))
    results = tuning.measure(problem, CPU, torch.float32)
    assert trouble in results['cpu'].trouble
    assert tuning.best_of(results) == 'reference'


@pytest.mark.parametrize(
    ('error', 'trouble'),
    [
        (KeyError('an error of a compiler'), "KeyError: 'an error of a compiler'"),
        (torch.OutOfMemoryError('all is full'), 'out of memory'),
    ],
)
def test_a_backend_that_fails_does_not_end_the_comparison(problem, error, trouble, monkeypatch):
    right = BACKENDS['cpu']

    def failing(arguments):
        raise error

    functions = {**right.functions, 'contmix_forward': failing}
    monkeypatch.setitem(BACKENDS._backends, 'cpu', Backend('cpu', right.why_not, functions))
    results = tuning.measure(problem, CPU, torch.float32)
    assert results['cpu'].trouble == trouble
    assert tuning.best_of(results) == 'reference'


def test_a_definition_that_does_not_fit_is_no_end(problem, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('all is full')

    monkeypatch.setattr(tuning, '_run', full)
    results = tuning.measure(problem, CPU, torch.float32)
    assert tuning.best_of(results) is None
    assert 'remedy: a smaller --batch-size' in results['cpu'].trouble


def test_what_was_measured_is_used(file, problem, tensors, caplog):
    caplog.set_level(logging.INFO, 'overlock_mm')
    topic = preferences.topic(problem.call(CPU, torch.float32))
    tuning.store(CPU, {topic: {problem.elements: 'reference'}})
    expected = contmix(*tensors, 3, backend='reference')
    torch.testing.assert_close(contmix(*tensors, 3), expected, rtol=0, atol=0)
    (entry,) = json.loads(file.read_text()).values()
    assert entry == {'contmix float32 K=3': [[problem.elements, 'reference']]}


def test_the_nearest_size_counts_and_what_is_stored_stays():
    topic = preferences.topic(call(1))
    assert BACKENDS.select(call(1000)).name == 'cpu'
    tuning.store(CPU, {topic: {1000: 'reference'}})
    tuning.store(CPU, {topic: {100_000: 'cpu'}})
    chosen = [BACKENDS.select(call(elements)).name for elements in (10, 9_000, 11_000, 10**7)]
    assert chosen == ['reference', 'reference', 'cpu', 'cpu']
    # A named backend is the one that was named.
    assert BACKENDS.select(call(1000), 'cpu').name == 'cpu'


def test_a_preferred_backend_that_cannot_run_is_passed_over():
    tuning.store(CPU, {preferences.topic(call(1)): {1: 'cuda'}})
    assert BACKENDS.select(call(1)).name == 'cpu'


def test_other_versions_are_measured_again(monkeypatch):
    tuning.store(CPU, {preferences.topic(call(1)): {1: 'reference'}})
    preferences.device_and_versions.cache_clear()
    monkeypatch.setattr(preferences, '__version__', '99')
    try:
        assert BACKENDS.select(call(1)).name == 'cpu'
    finally:
        preferences.device_and_versions.cache_clear()


@pytest.mark.parametrize(
    'content', ['{', '[]', '{"a": 3}', '{"a": {"b": [1]}}', '{"a": {"b": [[0, "cpu"]]}}']
)
def test_a_broken_file_is_a_warning(content, file, caplog):
    file.parent.mkdir()
    file.write_text(content)
    assert BACKENDS.select(call(1)).name == 'cpu'
    assert f'{file} cannot be read' in caplog.text and 'Remedy: delete the file' in caplog.text


@pytest.mark.slow
def test_the_command(file, capsys, monkeypatch):
    problems = [p for p in tuning.problems_of('xt', (32, 32), 1) if p.kernel_size in (3, 5)]
    monkeypatch.setattr(tuning, 'problems_of', lambda *_: problems)
    monkeypatch.setattr(tuning, 'RUNS', 2)
    assert doctor.main(['--tune', '--arch', 'xt', '--image-size', '32', '32']) == 0
    printed = capsys.readouterr().out
    assert 'not measured: triton: ' in printed and str(file) in printed.replace('\n', '')
    (entries,) = json.loads(file.read_text()).values()
    assert {'contmix float32 K=5', 'depthwise_conv2d_stats float32 K=3'} <= set(entries)
