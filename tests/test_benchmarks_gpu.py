"""The benchmark's way through its cells on a GPU, for which the CPU stands in."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import (
    __main__,
    cases,
    cells,
    implementations,
    network_gpu,
    network_report,
    networks,
    report,
    run,
    tiers,
)
from benchmarks.cells import Deadline, DeviceLostError
from benchmarks.depthwise import DepthwiseCase
from benchmarks.networks import Network, NetworkCase
from overlock_mm import OverLoCK
from tests.test_benchmark_networks import ARCH
from tests.test_benchmarks import TINY, TINY_AGGREGATE, TINY_DEPTHWISE

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device('cpu')
MACHINE = {'date': '2026-01-31', 'device': 'Some GPU', 'threads': 1, 'versions': {'torch': '2'}}
TRAINING = DepthwiseCase('depthwise_train', 1, 6, 5, 4, 3, 'a test')
REGISTRY = (TINY, TINY_AGGREGATE, *TINY_DEPTHWISE, TRAINING)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """A card with tiny cases, and a compiler that leaves everything as it is."""
    monkeypatch.setattr(cases, 'all_cases', lambda *_: REGISTRY)
    monkeypatch.setattr(run.measure, 'identity', lambda device: dict(MACHINE))
    rates = {'copy_bytes_per_s': 1e9, 'matmul_flops_per_s': {'float32': 1e9}}
    monkeypatch.setattr(run.measure, 'rates', lambda *_: rates)
    monkeypatch.setattr(torch, 'compile', lambda model, **_: model)


@pytest.fixture
def asked(monkeypatch):
    """Names of the implementations in the order in which they were checked."""
    names = []
    check = run.problems.Problem.check

    def recorded(self, name, function):
        names.append(f'{self.case.name}: {name}')
        check(self, name, function)

    monkeypatch.setattr(run.problems.Problem, 'check', recorded)
    return names


def measure(folder, pattern='', seconds=None, fresh=False, **options):
    plan = run.gpu_plan(Deadline(seconds, cell=60), fresh)
    path = run.run(CPU, pattern, 0, options.pop('baselines', ''), folder, plan, **options)
    return json.loads(path.read_text())


def test_what_is_compiled_comes_last(tmp_path, asked, monkeypatch):
    resets = []
    monkeypatch.setattr(torch.compiler, 'reset', lambda: resets.append(len(asked)))
    content = measure(tmp_path)
    assert len(resets) == 2 * len(REGISTRY) and resets == sorted(resets)
    assert [r['case']['name'] for r in content['results']] == [case.name for case in REGISTRY]
    assert asked[-1] == f'{TINY.name}: chain, unfold, compiled'
    training = content['results'][-1]['implementations']
    assert {'library', 'library, NCHW'} <= set(training)
    assert all(cell['forward_backward']['runs'] >= 3 for cell in training.values())
    first = content['results'][0]['implementations']
    assert all(cell['peak_extra_bytes'] >= 0 for cell in first.values())
    page = report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert '## GPU\n\n### Some GPU\n\n2026-01-31; 1 threads; torch 2' in page


@pytest.mark.parametrize('case', REGISTRY[:2], ids=lambda case: case.op)
def test_channels_last_changes_the_layout_only(case):
    planes = case.arguments(CPU, torch.float32)
    tensors = cases.in_channels_last(planes)
    assert all(map(torch.equal, tensors, planes))
    assert all(x.requires_grad and x.is_leaf for x in tensors)
    innermost = 2 if case is TINY else -1
    assert all(x.stride(innermost) == 1 for x in tensors[:2])
    cotangent = run.problems.cotangent_of(tensors)
    assert cotangent.stride() == tensors[2 if case is TINY else 1].stride()
    assert torch.equal(cotangent, run.problems.cotangent_of(planes))


def test_a_second_start_goes_on(tmp_path, asked):
    content = measure(tmp_path, TINY.name, baselines='loop')
    asked.clear()
    again = measure(tmp_path)
    assert not any(line == f'{TINY.name}: chain, tap loop' for line in asked)
    assert f'{TINY.name}: chain, unfold' in asked
    old, new = (c['results'][0]['implementations']['chain, tap loop'] for c in (content, again))
    assert old['forward']['median_ms'] == new['forward']['median_ms']
    asked.clear()
    measure(tmp_path)
    assert asked == []
    measure(tmp_path, TINY_AGGREGATE.name, fresh=True)
    assert asked


def test_other_code_is_measured_again(tmp_path, asked, monkeypatch):
    measure(tmp_path, TINY_AGGREGATE.name)
    asked.clear()
    monkeypatch.setattr(run, 'sources', lambda: 'other')
    measure(tmp_path, TINY_AGGREGATE.name)
    assert asked


def test_the_limit_ends_the_run(tmp_path, asked, monkeypatch):
    expired = iter([False, False, True, True])
    monkeypatch.setattr(Deadline, 'is_over', lambda self: next(expired))
    content = measure(tmp_path)
    assert [r['case']['name'] for r in content['results']] == [c.name for c in REGISTRY[:2]]


def test_a_cell_that_fails_in_any_way_costs_itself(tmp_path, monkeypatch):
    right = implementations.baselines

    def some(case, device):
        def out_of_memory(*tensors):
            raise torch.OutOfMemoryError('CUDA out of memory.')

        def broken(*tensors):
            raise KeyError('whatever a library raises')

        def endless(*tensors):
            time.sleep(60)

        loop = right(case, device)['chain, tap loop']
        return {
            'wrong': lambda *x: 1.01 * loop(*x),
            'out of memory': out_of_memory,
            'broken': broken,
            'endless': endless,
            'loop': loop,
        }

    monkeypatch.setattr(implementations, 'baselines', some)
    plan = run.gpu_plan(Deadline(cell=0.3))
    path = run.run(CPU, TINY.name, 0, '', tmp_path, plan)
    (result,) = json.loads(path.read_text())['results']
    reasons = {n: c.get('not_measured', '') for n, c in result['implementations'].items()}
    assert reasons['wrong'].startswith('Mismatch: wrong: the output is off by')
    assert reasons['out of memory'] == 'OutOfMemoryError: CUDA out of memory.'
    assert reasons['broken'] == "KeyError: 'whatever a library raises'"
    assert reasons['endless'] == 'OutOfTimeError: took longer than 0 s'
    assert reasons['loop'] == ''
    page = report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert '- out of memory, 1 case: `OutOfMemoryError: CUDA out of memory.`' in page


def test_a_case_that_cannot_be_set_up_costs_itself(tmp_path, monkeypatch):
    problem = run.problems.problem

    def fail(case, *arguments):
        if case is TINY:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return problem(case, *arguments)

    monkeypatch.setattr(run.problems, 'problem', fail)
    content = measure(tmp_path)
    assert content['refused'] == [f'{TINY.name} float32: OutOfMemoryError: CUDA out of memory.']
    assert len(content['results']) == len(REGISTRY)
    report.write(tmp_path, tmp_path / 'page.md')


def test_a_lost_card_is_left_to_another_process(tmp_path, monkeypatch):
    def lost(device):
        raise DeviceLostError('an illegal memory access was encountered')

    monkeypatch.setattr(run, 'check_device', lost)
    with pytest.raises(DeviceLostError):
        measure(tmp_path, TINY.name)
    (path,) = tmp_path.glob('*.json')
    (result,) = json.loads(path.read_text())['results']
    assert len(result['implementations']) == 1

    started = []
    monkeypatch.setattr(os, 'execv', lambda *arguments: started.append(arguments))
    __main__._start_again(['run', '--fresh', '--tier', '3'], Deadline(90), DeviceLostError('lost'))
    ((_, argv),) = started
    assert argv[1:] == ['-m', 'benchmarks', 'run', '--tier', '3', '--limit', '90']


@pytest.mark.parametrize('option', [('--tier', '3'), ('--limit', '9'), ('--fresh',)])
def test_options_of_a_gpu_are_refused_on_a_cpu(option, capsys):
    with pytest.raises(SystemExit):
        __main__.main(['run', *option])
    assert '--tier, --limit and, of run, --fresh are for --device cuda.' in capsys.readouterr().err


def test_a_machine_without_openmmlab_measures_all_the_same(monkeypatch, caplog):
    caplog.set_level('INFO')
    monkeypatch.setattr(__main__, 'FOR_PAGES', ('no_such_package',))
    assert __main__._write_pages(required=False) == 0
    assert 'Pages need no_such_package.' in caplog.text
    assert __main__._write_pages(required=True) == 1


def test_a_card_that_no_longer_answers_is_noticed(monkeypatch):
    def fail(device):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(torch.cuda, 'synchronize', fail)
    cells.check_device(CPU)
    with pytest.raises(DeviceLostError, match='illegal memory access'):
        cells.check_device(torch.device('cuda'))


def test_tiers_hold_what_their_help_says():
    work = [
        run.label((case, dtype))
        for case in (
            *cases.contmix_cases(),
            *cases.depthwise.all_cases(),
            *cases.depthwise.training_cases(),
        )
        for dtype in run.DTYPES['cuda']
    ]
    small, middle, everything = (tiers.selected(work, work, m, 'operators') for m in tiers.TIERS)
    assert small == [
        'neighborhood_aggregate-b8-g8-c16-14x14-k13 bfloat16',
        'contmix-b64-g8-c16-14x14-k13 bfloat16',
        'contmix-b2-g8-c16-50x80-k13 bfloat16',
        'depthwise_mean-b8-c64-56x56-k17 bfloat16',
        'depthwise_mlp-b8-c256-56x56-k3 bfloat16',
        'depthwise_train-b64-c64-56x56-k17 bfloat16',
    ]
    assert middle[:6] == small and 'contmix-b2-g8-c16-50x80-k13 float32' in middle
    assert sorted(everything) == sorted(work) and len(middle) < len(work) / 2
    pairs = [
        f'{network.name} {case.name}'
        for case in networks.all_cases('cuda')
        for network in networks.GPU_NETWORKS
    ]
    small, middle, everything = (tiers.selected(pairs, pairs, m, 'networks') for m in tiers.TIERS)
    assert {pair.split()[0] for pair in small} == {'OverLoCK-XT', 'ConvNeXt-T'}
    assert 'OverLoCK-T inference-b1-800x1280' in middle
    assert sorted(everything) == sorted(pairs)


def test_a_time_limit_and_what_remains_of_it():
    with pytest.raises(cells.OutOfTimeError), cells.time_limit(0.01):
        time.sleep(5)
    with cells.time_limit(None):
        pass
    assert Deadline().of_a_cell() is None
    assert Deadline(cell=3).of_a_cell() == 3
    assert Deadline(2, cell=3).of_a_cell() <= 2
    assert Deadline(0).is_over() and not Deadline(9).is_over()


# Whole networks -----------------------------------------------------------------------------------


def tiny_convnext(with_cp=False):
    if with_cp:
        raise torch.OutOfMemoryError('CUDA out of memory.')
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4))


def missing(**_):
    raise ModuleNotFoundError("No module named 'mmpretrain'")


NETWORKS = (
    Network('OverLoCK-XT', partial(OverLoCK, ARCH), 82.7, 'a test'),
    Network('ConvNeXt-T', tiny_convnext, 82.1, 'a test'),
    Network('Swin-T', missing, 81.3, 'a test'),
)


@pytest.fixture
def tiny_networks(monkeypatch):
    sizes = (NetworkCase('inference', 1, 224, 224), NetworkCase('training', 64, 224, 224))
    monkeypatch.setattr(network_gpu, 'GPU_NETWORKS', NETWORKS)
    monkeypatch.setattr(network_gpu, 'all_cases', lambda device: sizes)
    monkeypatch.setattr(NetworkCase, 'image', lambda case, device: torch.randn(1, 3, 64, 64))
    monkeypatch.setattr(network_gpu, 'RUNS', 3)


def measure_networks(folder, pattern='', networks='', **options):
    deadline = Deadline(options.pop('seconds', None))
    path = network_gpu.run(CPU, pattern, networks, 0, deadline, folder, **options)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_networks_become_a_page(tiny_networks, tmp_path):
    content = measure_networks(tmp_path)
    inference, training = (r['candidates'] for r in content['results'])
    assert set(inference) == {
        f'{name}, {runtime}, bfloat16'
        for name in (
            'OverLoCK-XT, training form',
            'OverLoCK-XT, fused form',
            'ConvNeXt-T',
            'Swin-T',
        )
        for runtime in ('eager', 'torch.compile')
    }
    assert [entry['of'] for entry in training.values()] == [
        *(f'OverLoCK-XT, training form, recompute {x}' for x in ('none', 'cheap', 'blocks')),
        *(f'{name}, with_cp {x}' for name in ('ConvNeXt-T', 'Swin-T') for x in ('off', 'on')),
        'OverLoCK-XT, training form, recompute none',
        *(f'{name}, with_cp off' for name in ('ConvNeXt-T', 'Swin-T')),
    ]
    ours = inference['OverLoCK-XT, fused form, eager, bfloat16']
    assert ours['median_ms'] > 0 and ours['layout'] in networks.LAYOUTS
    assert ours['peak_extra_bytes'] >= 0
    assert content['networks']['OverLoCK-XT']['parameters'] > 0
    failed = training['ConvNeXt-T, with_cp on, eager, autocast to bfloat16']
    assert failed['not_measured'] == 'OutOfMemoryError: CUDA out of memory.'
    page = network_report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert '### Some GPU\n\n2026-01-31' in page
    assert '| OverLoCK-XT, fused form | ConvNeXt-T | bfloat16 |' in page
    assert '| ConvNeXt-T | 82.1 | 0.0 | autocast to bfloat16 |' not in page
    assert "Swin-T, eager, bfloat16: `ModuleNotFoundError: No module named 'mmpretrain'`" in page


def test_a_second_start_of_networks_goes_on(tiny_networks, tmp_path, monkeypatch):
    measure_networks(tmp_path, 'inference', 'ConvNeXt')
    times = []
    original = network_gpu._times
    monkeypatch.setattr(network_gpu, '_times', lambda *x: times.append(x) or original(*x))
    content = measure_networks(tmp_path, '', 'ConvNeXt')
    assert [case.mode for _, case, *_ in times] == ['training', 'training']
    assert len(content['results']) == 2
    measure_networks(tmp_path, 'inference', 'ConvNeXt', fresh=True)
    assert len(times) == 4
    with pytest.raises(RuntimeError, match="networks 'ResNet'"):
        measure_networks(tmp_path, '', 'ResNet')


def test_the_limit_ends_the_run_of_networks(tiny_networks, tmp_path):
    network_gpu.run(CPU, '', '', 0, Deadline(0), tmp_path)
    assert not list(tmp_path.iterdir())


INTERPRETED = """
import sys
from pathlib import Path
from tests import test_benchmarks_gpu as dry
from tests import triton_interpreter
triton_interpreter.repair()
run, implementations = dry.run, dry.implementations
dry.cases.all_cases = lambda *_: dry.TINY_DEPTHWISE[:1]
run.measure.identity = lambda device: dict(dry.MACHINE)
run.measure.rates = lambda *_: {'copy_bytes_per_s': 1e9, 'matmul_flops_per_s': {'float32': 1e9}}
plan = run.gpu_plan(dry.Deadline(cell=60))
print(run.run(dry.CPU, '', 0, 'loop', Path(sys.argv[1]), plan))
"""


@pytest.mark.slow
def test_triton_kernels_take_part(tmp_path):
    # Triton decides when it is imported whether it interprets.
    subprocess.run(
        [sys.executable, '-c', INTERPRETED, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': str(ROOT)},
        check=True,
    )
    (path,) = tmp_path.glob('gpu-*.json')
    (result,) = json.loads(path.read_text())['results']
    assert 'triton' in result['ours']
    assert result['implementations']['triton']['forward']['median_ms'] > 0
