"""The benchmark's own rules: it checks before it reports, and the page is what was stored."""

import json

import pytest
import torch

from benchmarks import cases, implementations, problems, report, run, training_memory
from benchmarks.cases import Case
from benchmarks.depthwise import DepthwiseCase
from overlock_mm.ops import contmix

TINY = Case('contmix', 1, 2, 4, 6, 7, 5, 'a test')
TINY_AGGREGATE = Case('neighborhood_aggregate', 1, 2, 4, 6, 7, 3, 'a test')
TINY_DEPTHWISE = tuple(
    DepthwiseCase(f'depthwise_{what}', 1, 6, 5, 4, 3, 'a test') for what in ('norm', 'mean', 'mlp')
)
CPU = torch.device('cpu')


@pytest.fixture
def tiny_cases(monkeypatch):
    monkeypatch.setattr(cases, 'all_cases', lambda *_: [TINY, TINY_AGGREGATE])
    monkeypatch.setattr(
        run.measure,
        'identity',
        lambda device: {
            'date': '2026-01-31',
            'device': 'Some CPU',
            'threads': 1,
            'versions': {'torch': '2'},
        },
    )
    monkeypatch.setattr(
        run.measure,
        'rates',
        lambda *_: {'copy_bytes_per_s': 1e9, 'matmul_flops_per_s': {'float32': 1e9}},
    )


def test_results_become_a_page(tiny_cases, tmp_path):
    path = run.run(CPU, '', budget=0, baselines='loop', results=tmp_path)
    content = json.loads(path.read_text())
    assert path.name == 'cpu-some-cpu.json'
    assert [r['case']['name'] for r in content['results']] == [TINY.name, TINY_AGGREGATE.name]
    for result in content['results']:
        for measured in result['implementations'].values():
            assert measured['forward']['median_ms'] > 0
            assert measured['forward_backward']['runs'] >= 3
            assert measured['peak_extra_bytes'] >= 0
    page = report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert '### Some CPU' in page
    assert '2026-01-31' in page
    assert '| a test | 1 | 2 | 4 | 6 x 7 | 5 |' in page
    assert page.endswith('## GPU\n\nnot measured\n')


def test_depthwise_cases_are_forward_only(tiny_cases, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, 'all_cases', lambda *_: TINY_DEPTHWISE)
    path = run.run(CPU, '', budget=0, baselines='', results=tmp_path)
    results = json.loads(path.read_text())['results']
    assert [r['case']['name'] for r in results] == [case.name for case in TINY_DEPTHWISE]
    for result in results:
        assert {'chain', 'chain, NCHW'} <= set(result['implementations'])
        assert all(list(times) == ['forward'] for times in result['implementations'].values())
    page = report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert '#### depthwise_mlp, float32: forward\n' in page
    assert 'forward and backward' not in page.split('## CPU')[1]
    assert '| a test | 1 |  | 6 | 5 x 4 | 3 |' in page


def test_a_wrong_result_is_not_reported(tiny_cases, tmp_path, monkeypatch):
    backends = implementations.backends

    def wrong(case, tensors):
        right = backends(case, tensors)
        if case.op != 'contmix':
            return right
        return {'cpu': lambda *x: 1.01 * contmix(*x, case.kernel_size, scale=implementations.SCALE)}

    monkeypatch.setattr(implementations, 'backends', wrong)
    path = run.run(CPU, '', budget=0, baselines='loop', results=tmp_path)
    content = json.loads(path.read_text())
    wrong, right = content['results']
    assert wrong['implementations']['cpu'] == {
        'not_measured': content['refused'][0].removeprefix(f'{TINY.name} float32: ')
    }
    assert 'Mismatch: cpu: the output is off by' in content['refused'][0]
    assert right['implementations'][right['ours'][0]]['forward']['median_ms'] > 0
    page = report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert f'- {content["refused"][0]}' in page


def test_a_baseline_that_fails_costs_its_own_cell(tiny_cases, tmp_path, monkeypatch):
    right = implementations.baselines

    def some_wrong(case, device):
        def broken(*tensors):
            raise torch.OutOfMemoryError('CUDA out of memory.')

        functions = right(case, device)
        loop = next(f for name, f in functions.items() if 'loop' in name)
        return {'wrong': lambda *x: 1.01 * loop(*x), 'broken': broken, **functions}

    monkeypatch.setattr(implementations, 'baselines', some_wrong)
    path = run.run(CPU, TINY.name, budget=0, baselines='wrong|broken|loop', results=tmp_path)
    (result,) = json.loads(path.read_text())['results']
    measured = result['implementations']
    assert 'Mismatch: wrong: the output is off by' in measured['wrong']['not_measured']
    assert measured['broken'] == {'not_measured': 'OutOfMemoryError: CUDA out of memory.'}
    assert measured['chain, tap loop']['forward']['median_ms'] > 0
    report.write(tmp_path, tmp_path / 'page.md')


def test_each_cell_is_stored_when_it_is_done(tiny_cases, tmp_path, monkeypatch):
    problem = problems.problem

    def stopped_at_the_second(case, *arguments):
        if case is TINY_AGGREGATE:
            raise KeyboardInterrupt
        return problem(case, *arguments)

    monkeypatch.setattr(problems, 'problem', stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run.run(CPU, '', budget=0, baselines='loop', results=tmp_path)
    (path,) = tmp_path.glob('*.json')
    (result,) = json.loads(path.read_text())['results']
    assert result['case']['name'] == TINY.name


@pytest.mark.parametrize('case', [TINY, TINY_AGGREGATE], ids=lambda case: case.op)
def test_baselines_are_the_same_operator(case):
    problem = problems.problem(case, CPU, torch.float32)
    for name, function in problem.others.items():
        if not implementations.is_compiled(name):  # minutes, for the same function
            problem.check(name, function)


def test_the_registry_has_the_shapes_of_the_published_variants():
    everything = list(cases.all_cases())
    assert len({case.name for case in everything}) == len(everything)
    registered = list(cases.contmix_cases())
    sizes = {(c.batch, c.groups, c.channels, c.height, c.width, c.kernel_size) for c in registered}
    # Variant T, stage 3 on an image of the COCO size, and stage 4 on one of ImageNet.
    assert {(2, 8, 16, 50, 80, 13), (2, 8, 16, 50, 80, 5), (64, 16, 16, 7, 7, 7)} <= sizes
    # K = 13 and 5, per token and group: affinity 784 each, projection 9,506, aggregation 3,104.
    flops = sum(c.forward_flops() for c in registered if c.name.startswith('contmix-b1-g8-c16-50'))
    assert flops == 2 * 32_000 * (2 * 784 + 9_506 + 3_104)


def test_the_page_on_training_is_what_was_measured():
    content = json.loads(training_memory.RESULTS_FILE.read_text())
    assert training_memory.PAGE.read_text() == training_memory.page(content)
    assert set(content) == set(training_memory.PARTS)


def test_a_step_in_every_formulation(monkeypatch):
    monkeypatch.setattr(training_memory, 'build', lambda *_: torch.nn.Conv2d(3, 4, 1))
    monkeypatch.setattr(training_memory.measure, 'machine', lambda *_: {})
    times = training_memory.run('times', batch_size=1, rounds=2)
    assert set(times['steps']) == {'none', 'cheap', 'blocks', 'selective'}
    assert all(row['fastest_ms'] <= row['median_ms'] for row in times['steps'].values())
