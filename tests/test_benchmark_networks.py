"""The benchmark of whole networks: it measures what it says, and the page is what was stored."""

import json
from functools import partial

import pytest
import torch

from benchmarks import network_report, network_run, networks
from benchmarks.networks import NETWORKS, Network, NetworkCase
from overlock_mm import OverLoCK

ARCH = dict(channels=(16, 16, 64, 64), depths=(1, 1, 1, 1, 1, 1), groups=(2, 2))
TINY = (
    Network('OverLoCK-T', partial(OverLoCK, ARCH), 84.2, 'a test'),
    Network('ConvNeXt-B', partial(torch.nn.Sequential, torch.nn.Conv2d(3, 4, 3)), 83.8, 'a test'),
)
CASES = (
    NetworkCase('inference', 1, 224, 224),
    NetworkCase('inference', 1, 800, 1280),
    NetworkCase('training', 8, 224, 224),
)


@pytest.fixture
def tiny(monkeypatch):
    """Tiny networks under the names of large ones, on tiny images under the names of cases."""
    monkeypatch.setattr(network_run, 'NETWORKS', TINY)
    monkeypatch.setattr(network_run, 'all_cases', lambda device: CASES)
    sizes = {224: 64, 800: 64, 1280: 96}
    image = NetworkCase.image

    def small(case, device):
        case = NetworkCase(
            case.mode, 1, sizes.get(case.height, case.height), sizes.get(case.width, case.width)
        )
        return image(case, device)

    monkeypatch.setattr(NetworkCase, 'image', small)
    monkeypatch.setattr(network_run, 'ROUNDS', (3, 3))
    monkeypatch.setattr(
        network_run.measure,
        'machine',
        lambda device, dtypes: {
            'date': '2026-01-31',
            'device': 'Some CPU',
            'threads': 1,
            'versions': {'torch': '2'},
        },
    )
    # For this process the C library keeps its ways.
    monkeypatch.setattr(network_run.measure, 'return_freed_memory', lambda: None)


@pytest.mark.slow
def test_results_become_a_page(tiny, tmp_path):
    path = network_run.run('main', '', '', budget=0, results=tmp_path, runtimes='ONNX|oneDNN')
    content = json.loads(path.read_text())
    assert path.name == 'networks-cpu-some-cpu.json'
    assert [r['case']['name'] for r in content['results']] == [case.name for case in CASES]
    inference, _, training = (r['candidates'] for r in content['results'])
    assert set(inference) == {
        'OverLoCK-T, training form',
        'OverLoCK-T, fused form, eager, float32',
        'OverLoCK-T, fused form, ONNX Runtime, float32',
        'OverLoCK-T, fused form, eager, bfloat16',
        'ConvNeXt-B, eager, float32',
        'ConvNeXt-B, eager with oneDNN products, float32',
        'ConvNeXt-B, ONNX Runtime, float32',
        'ConvNeXt-B, eager, bfloat16',
    }
    assert set(training) == {'OverLoCK-T, training form', 'ConvNeXt-B'}
    for measured in inference.values():
        assert measured['median_ms'] > 0
        assert measured['runs'] == 3
        assert measured['images_per_s'] == pytest.approx(1e3 / measured['median_ms'])
    assert inference['OverLoCK-T, fused form, eager, float32']['peak_extra_bytes'] >= 0
    facts = content['networks']['OverLoCK-T']
    assert facts['parameters'] == sum(p.numel() for p in OverLoCK(ARCH, deploy=True).parameters())

    page = network_report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert '### Some CPU' in page
    assert '2026-01-31' in page
    times = [
        min(
            measured['median_ms']
            for name, measured in inference.items()
            if name.startswith(start) and name.endswith('float32')
        )
        for start in ('OverLoCK-T, fused form', 'ConvNeXt-B')
    ]
    ratio = f'{times[0] / times[1]:.2f}'
    assert f'| OverLoCK-T, fused form | ConvNeXt-B | float32 | {ratio} |' in page
    assert page.endswith('## GPU\n\nnot measured\n')
    for picture in ('accuracy', 'resolution'):
        drawn = (tmp_path / f'networks-cpu-some-cpu-{picture}.svg').read_text()
        assert f'networks-cpu-some-cpu-{picture}.svg' in page
        assert 'OverLoCK-T' in drawn
        assert len(drawn) < 100_000


@pytest.mark.slow
def test_a_run_that_is_stopped_keeps_its_times(tiny, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(network_run.measure, 'peak_extra_memory', stop)
    with pytest.raises(KeyboardInterrupt):
        network_run.run('main', '', '', 0, tmp_path, 'none')
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert [r['case']['name'] for r in content['results']] == [case.name for case in CASES]
    page = network_report.write(tmp_path, tmp_path / 'page.md').read_text()
    assert 'OverLoCK-T, fused form' in page


@pytest.mark.slow
def test_a_second_run_measures_what_is_missing(tiny, tmp_path, monkeypatch):
    timed = []
    time_in_turns = network_run.time_in_turns

    def noted(entries, *arguments):
        timed.append(len(entries))
        time_in_turns(entries, *arguments)

    monkeypatch.setattr(network_run, 'time_in_turns', noted)

    def run(pattern, networks='OverLoCK', **options):
        """Names of all stored cases, and how many candidates were timed."""
        timed.clear()
        path = network_run.run('main', pattern, networks, 0, tmp_path, 'none', **options)
        return [r['case']['name'] for r in json.loads(path.read_text())['results']], *timed

    first, second, _ = (case.name for case in CASES)
    assert run(second) == ([second], 3)
    assert run('inference') == ([first, second], 3)
    assert run(first) == ([first, second],)
    assert run(first, networks='') == ([first, second], 5)  # a case is measured in one go
    assert run(second, fresh=True) == ([second], 3)
    machine = network_run.measure.machine
    monkeypatch.setattr(
        network_run.measure, 'machine', lambda *x: {**machine(*x), 'versions': {'torch': '3'}}
    )
    assert run(first) == ([first], 3)


@pytest.mark.slow
def test_a_second_run_measures_the_memory_that_is_missing(tiny, tmp_path, monkeypatch):
    def run():
        path = network_run.run('main', CASES[0].name, 'OverLoCK', 0, tmp_path, 'none')
        return json.loads(path.read_text())['results'][0]['candidates']

    with monkeypatch.context() as patch:
        patch.setattr(network_run, '_measure_memory', lambda *_: None)
        timed = run()
    complete = run()
    assert timed.keys() == complete.keys()
    for name, entry in timed.items():
        assert 'peak_extra_bytes' not in entry
        assert complete[name].pop('peak_extra_bytes') >= 0
        assert complete[name] == entry


def test_a_runtime_that_cannot_run_a_network_is_left_out(caplog):
    def refuse():
        raise ModuleNotFoundError('No module named openvino')

    assert network_run._tried('OpenVINO', refuse) is None
    assert 'not measured: ModuleNotFoundError: No module named openvino' in caplog.text


def test_nothing_selected(tiny, tmp_path):
    with pytest.raises(RuntimeError, match="networks 'ResNet'"):
        network_run.run('main', '', 'ResNet', budget=0, results=tmp_path)


def test_the_registry():
    cases = {device: list(networks.all_cases(device)) for device in ('cpu', 'cuda')}
    for registered in cases.values():
        assert len({case.name for case in registered}) == len(registered)
    assert set(networks.MAIN) <= {case.name for case in cases['cpu']}
    assert NetworkCase('inference', 64, 224, 224) in cases['cuda']
    assert {(c.height, c.width, c.batch) for c in cases['cpu'] if c.mode == 'inference'} == {
        (*size, batch) for size in ((224, 224), (512, 512), (800, 1280)) for batch in (1, 8)
    }


def baselines_of_each_kind():
    return [network for network in NETWORKS if network.name.endswith('T') and not network.ours]


@pytest.mark.parametrize('network', baselines_of_each_kind(), ids=lambda network: network.name)
def test_baselines_have_four_outputs(network):
    model = network.build().to('meta')
    model.eval()
    outputs = model(torch.empty(1, 3, 224, 224, device='meta'))
    assert [tuple(x.shape[-2:]) for x in outputs] == [(56, 56), (28, 28), (14, 14), (7, 7)]
