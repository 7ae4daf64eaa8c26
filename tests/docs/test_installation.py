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

from tests.docs.pages import ROOT, commands_of

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


@pytest.mark.skipif(
    os.environ.get('OVERLOCK_TEST_INSTALL') != '1',
    reason='It downloads 3 GB. Remedy: make test-install.',
)
def test_commands_lead_to_a_trained_step(tmp_path):
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
