"""The doctor finds what is wrong and says what to do."""

import subprocess
import sys

import pytest

from overlock_mm import doctor

MAINTAINED = {pair[1]: '1' for pair in doctor.STACK.values()} | {'faster-coco-eval': '1'}
ORIGINAL = {pair[0]: '1' for pair in doctor.STACK.values()}


def without(versions, *names):
    return {name: version for name, version in versions.items() if name not in names}


@pytest.mark.parametrize('versions', [MAINTAINED, ORIGINAL])
def test_a_whole_stack_of_either_kind_is_fine(versions):
    assert doctor.stack_problems(versions | {'opencv-python': '4'}) == []


@pytest.mark.parametrize(
    ('versions', 'what', 'remedy'),
    [
        (
            without(MAINTAINED, 'onedl-mmcv') | {'mmcv': '2.1.0'},
            'The stack is mixed: mmcv of the original distributions, onedl-mmengine',
            'Use one kind',
        ),
        (
            ORIGINAL | {'onedl-mmcv': '2.3.6'},
            'mmcv and onedl-mmcv are both installed',
            'pip uninstall mmcv onedl-mmcv',
        ),
        (
            without(ORIGINAL, 'mmsegmentation'),
            'mmseg is not installed; it is needed for segmentation',
            'onedl-mmsegmentation',
        ),
        (
            without(MAINTAINED, 'onedl-mmengine'),
            'mmengine is not installed; it is always needed',
            'pip install onedl-mmengine',
        ),
        (
            MAINTAINED | {'opencv-python': '4', 'opencv-python-headless': '4'},
            'opencv-python and opencv-python-headless write over each other',
            'pip uninstall -y opencv-python opencv-python-headless',
        ),
        (
            without(MAINTAINED, 'faster-coco-eval'),
            'faster-coco-eval is missing',
            'pip install faster-coco-eval',
        ),
    ],
)
def test_problems_of_the_stack(versions, what, remedy):
    problems = doctor.stack_problems(versions)
    assert [p for p in problems if p.what.startswith(what) and remedy in p.remedy], problems


def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(doctor.sys.modules, 'torchvision', raising=False)
    monkeypatch.setattr(doctor, 'STACK', {})
    (problem,) = doctor.import_problems()
    assert problem.what == (
        'torchvision is installed but cannot be imported: operator nms does not exist'
    )
    assert 'made for this torch' in problem.remedy


@pytest.mark.slow
def test_this_environment():
    result = subprocess.run(
        [sys.executable, '-m', 'overlock_mm.doctor'], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for word in ('mmengine', 'torch', 'GPU:', 'Compiled part:', 'reference: works'):
        assert word in result.stdout
    assert result.stdout.endswith('No problem found.\n')
