"""The shell scripts that start several processes; tests/docs runs what they start."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools import train as train_tool

SCRIPTS = ('dist_train', 'dist_test', 'slurm_train', 'slurm_test')
# Writes its arguments.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
port = os.environ.get('MASTER_PORT')
json.dump(dict(arguments=sys.argv[1:], port=port), open({{path!r}}, 'w'))
"""


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Run a script with stand-ins for srun and python; returns how they were called."""
    path = tmp_path / 'call.json'
    for name in ('srun', 'python'):
        program = tmp_path / 'bin' / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN.format(path=str(path)))
        program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{program.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.delenv('PYTHON', raising=False)

    def run(script, *arguments, **environment):
        command = [ROOT / f'tools/{script}.sh', *map(str, arguments)]
        result = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return json.loads(path.read_text())

    return run


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('arguments', [(), ('config.py',), ('config.py', 'file.pth', 'eight')])
def test_wrong_arguments_are_answered_with_the_usage(script, arguments):
    if script == 'slurm_train' and len(arguments) == 3:
        arguments = arguments[:2]
    command = [ROOT / f'tools/{script}.sh', *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith(f'usage: {ROOT}/tools/{script}.sh ')
    assert 'Environment: ' in result.stderr


def test_one_machine_takes_a_free_port(called):
    arguments = called('dist_train', 'config.py', 8, '--resume')['arguments']
    assert arguments[:5] == [
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '8',
    ]
    assert arguments[5].endswith('tools/train.py')
    args = train_tool.parse_args(arguments[6:])
    assert (args.config, args.resume, args.launcher) == ('config.py', 'auto', 'pytorch')


def test_options_of_the_config_end_before_the_launcher(called):
    arguments = called('dist_train', 'config.py', 8, '--cfg-options', 'a=1', 'b=2')['arguments']
    args = train_tool.parse_args(arguments[6:])
    assert (args.cfg_options, args.launcher) == ({'a': 1, 'b': 2}, 'pytorch')


def test_several_machines_meet_at_the_first(called):
    environment = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    arguments = called('dist_test', 'config.py', 'file.pth', 4, **environment)['arguments']
    assert ' '.join(arguments[2:12]) == (
        '--nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --master-port 1234 --nproc-per-node 4'
    )
    assert arguments[13:] == ['config.py', 'file.pth', '--launcher', 'pytorch']


def test_several_machines_need_a_number_and_an_address():
    environment = os.environ | dict(NNODES='2', NODE_RANK='0')
    command = [ROOT / 'tools/dist_train.sh', 'config.py', '8']
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert 'MASTER_ADDR: is the address of node 0' in result.stderr


def test_slurm_starts_a_process_for_each_gpu(called):
    environment = dict(GPUS='16', SRUN_ARGS='--time=1:00:00 --exclusive', PORT='1234')
    call = called('slurm_train', 'part', 'job', 'config.py', '--resume', **environment)
    assert call['port'] == '1234'
    options, _, rest = ' '.join(call['arguments']).partition(' python -u ')
    assert options.split() == [
        '--partition=part',
        '--job-name=job',
        '--gres=gpu:8',
        '--ntasks=16',
        '--ntasks-per-node=8',
        '--cpus-per-task=5',
        '--kill-on-bad-exit=1',
        '--time=1:00:00',
        '--exclusive',
    ]
    program, *arguments = rest.split()
    assert program.endswith('tools/train.py')
    args = train_tool.parse_args(arguments)
    assert (args.config, args.resume, args.launcher) == ('config.py', 'auto', 'slurm')


def test_slurm_on_a_part_of_a_machine(called):
    arguments = called('slurm_test', 'part', 'job', 'config.py', 'file.pth', GPUS='2')['arguments']
    assert '--gres=gpu:2' in arguments
    assert '--ntasks-per-node=2' in arguments
