"""The commands of README and docs/installation.md, in a virtual environment of their own.

It downloads gigabytes, so it runs by ``make test-install``.
"""

import json
import os
import re
import subprocess
import sys

import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from tests.docs.pages import ROOT, commands_of
from tools.deployment import export_onnx
from tools.visualization import demo

# One step on one picture, at the full size of 1333 x 800. From random weights, as a machine that
# has a mirror of the package index need not reach the published ones.
TRAIN = (
    'python tools/train.py configs/detection/cascade_overlock_s.py --cfg-options '
    'model.backbone.init_cfg=None train_cfg.max_epochs=1 train_cfg.val_interval=2 '
    'train_dataloader.batch_size=1'
)


def install_commands() -> list[str]:
    """The commands of the page's section on an environment of the user's own."""
    return [line for line in commands_of('installation') if line.startswith('pip ')]


def test_readme_and_page_install_by_the_same_commands():
    readme = (ROOT / 'README.md').read_text()
    assert len(install_commands()) == 3
    for command in install_commands():
        assert f'\n{command}\n' in readme


def test_installed_files_exist():
    named = re.findall(r'-r (\S+)', ' '.join(install_commands()))
    assert len(named) == 5
    assert [name for name in named if not (ROOT / name).is_file()] == []


downloads = pytest.mark.skipif(
    os.environ.get('OVERLOCK_TEST_INSTALL') != '1',
    reason='It downloads up to 3 GB. Remedy: make test-install.',
)


@pytest.fixture
def run(tmp_path):
    """Run a command in a copy of the project and in a virtual environment of its own."""
    project = tmp_path / 'project'
    files = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split('\0')  # fmt: skip
    for name in filter(None, files):
        target = project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / name
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    environ = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    environ['PATH'] = f'{tmp_path / "venv/bin"}{os.pathsep}{environ["PATH"]}'

    def run(command: str) -> str:
        done = subprocess.run(
            ['bash', '-euc', command], cwd=project, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
        return done.stdout

    return run


@downloads
def test_commands_lead_to_a_trained_step(run, tmp_path):
    project = tmp_path / 'project'
    for command in install_commands():
        run(command)
    run('python tools/dataset_tools/generate_shapes.py data --num-train 1 --num-val 1')
    for path in (project / 'data/coco/annotations').glob('*.json'):
        # The five shapes under the names of COCO's first five classes.
        content = json.loads(path.read_text())
        content['categories'] = [
            {'id': number, 'name': name}
            for number, name in enumerate(CocoDataset.METAINFO['classes'], start=1)
        ]
        path.write_text(json.dumps(content))
    run(TRAIN)
    assert (project / 'work_dirs/cascade_overlock_s/epoch_1.pth').is_file()
    print(run('python -m overlock_mm.doctor'))


@downloads
def test_an_exported_file_runs_in_a_bare_environment(run, untrained, tmp_path):
    """A wheel with the extra ``runtime``, and the answers of the demo tool."""
    config, weights = untrained('detection')
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for i in range(10):
        size = (96 + 7 * i, 64 + 5 * i)
        Image.effect_noise(size, 60).convert('RGB').save(
            pictures / f'{i}.{"jpg" if i % 2 else "png"}'
        )
    export_onnx.main([config, weights, str(tmp_path / 'model.onnx'), '--dynamic', '--no-check'])
    options = ['--out-dir', str(tmp_path / 'out'), '--score-thr', '0', '--device', 'cpu']
    expected = demo.main([str(pictures), config, weights, *options])['pictures']

    run('OVERLOCK_WITH_EXT=0 pip wheel -q --no-deps -w dist .')
    run('cd / && pip install -q "$(ls $OLDPWD/dist/*.whl)[runtime]"')
    installed = {line.split('==')[0].lower() for line in run('pip freeze').splitlines()}
    assert not installed & {'torch', 'opencv-python', 'onedl-mmengine', 'mmengine', 'rich'}
    program = tmp_path / 'program.py'
    program.write_text(
        'import json, sys\n'
        'from overlock_mm import Predictor\n'
        'results = Predictor(sys.argv[1])(sys.argv[2])\n'
        'print(json.dumps({result.source: result.to_dict() for result in results}))\n'
    )
    actual = json.loads(run(f'cd / && python {program} {tmp_path}/model.onnx {pictures}'))
    assert actual.keys() == expected.keys()
    for path, objects in expected.items():
        for one, other in zip(actual[path], objects, strict=True):
            assert one['class'] == other['class']
            # Both are rounded.
            assert one['score'] == pytest.approx(other['score'], abs=2e-4)
            assert one['box'] == pytest.approx(other['box'], abs=0.11)
    equal = [actual[path] == expected[path] for path in expected]
    print(
        f'{sum(equal)} of {len(equal)} pictures have the same JSON; installed: {sorted(installed)}'
    )
