"""Every command and every Python block of the pages runs, on tiny data.

A command is run as it is written, but for the substitutions below; one that no rule covers fails.
The heavy configs have stand-ins (see conftest.py), so that a page's commands find what earlier
ones wrote.
"""

import importlib
import json
import os
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.docs.pages import ROOT, commands_of, python_of
from tests.docs.test_installation import install_commands
from tests.fixtures import forget_globals_of_mmengine
from tools import test as test_tool
from tools import train as train_tool

pytestmark = pytest.mark.slow

PAGES = (
    'README',
    'data_preparation',
    'training',
    'evaluation',
    'conversion',
    'inheritance',
    'contmix_block',
    'paper_map',
    'analysis',
    'explorer',
    'export',
    'prediction',
    'mmcv_operators',
)
#: What a page's reader has before the first command.
GIVEN = {
    'README': 'all_of_it',
    'evaluation': 'trained',
    'conversion': 'released',
    'analysis': 'trained_and_pictures',
    'explorer': 'trained_and_pictures',
    'export': 'trained_and_pictures',
    'prediction': 'trained_and_pictures',
}
#: Pages without a command.
PYTHON_ONLY = ('inheritance', 'contmix_block', 'paper_map')
TIMEOUT = 900  # for a busy machine; on an idle one a command takes seconds


class Shell:
    """Runs the commands of a page one after the other."""

    def __init__(self, capsys, data_folders):
        self.capsys = capsys
        self.data_folders = data_folders
        self.first_node = None
        self.port = None
        self.rules = (
            (r'pip install ', self.look_up),
            (r'python tools/dataset_tools/generate_shapes\.py ', self.draw),
            (r'python tools/train\.py .*--amp ', self.needs_gpu),
            (r'python tools/reproduce\.py ', self.lacks_weights),
            (r'python tools/\w+(/\w+)?\.py ', self.run_tool),
            (r'python -m overlock_mm\.doctor$', self.run_python),
            (r'NNODES=2 NODE_RANK=0 .*tools/dist_train\.sh ', self.start_first_node),
            (r'NNODES=2 NODE_RANK=1 .*tools/dist_train\.sh ', self.run_second_node),
            (r'tools/dist_(train|test)\.sh ', self.run_processes),
            (r'GPUS=\d+ tools/slurm_(train|test)\.sh ', self.submit),
        )

    def run(self, command):
        for pattern, action in self.rules:
            if re.match(pattern, command):
                forget_globals_of_mmengine()
                action(self.on_tiny_data(command))
                self.capsys.readouterr()
                return
        pytest.fail(f'No rule covers this command of the page: {command}')

    def on_tiny_data(self, command):
        for documented, tiny in self.data_folders.items():
            command = command.replace(documented, tiny)
        for name in re.findall(r'\S+<hash>\.pth', command):
            (file,) = Path().glob(name.replace('<hash>', '[0-9a-f]' * 8))
            command = command.replace(name, str(file))
        return command

    def bash(self, command):
        result = subprocess.run(
            ['bash', '-euc', command], capture_output=True, text=True, timeout=TIMEOUT
        )
        assert result.returncode == 0, f'{command}\n{result.stderr[-3000:]}'

    def draw(self, command):
        command = re.sub(r'--num-train \d+ --num-val \d+', '', command)
        self.run_python(f'{command} --num-train 5 --num-val 5')

    def run_python(self, command):
        self.bash(command.replace('python', os.environ['PYTHON'], 1))

    def run_tool(self, command):
        # In this process, as to import the libraries takes longer than most of the commands.
        # What the stand-in has trained, it has for one epoch.
        command = command.replace('_fsdp/epoch_36.pth', '_fsdp/epoch_1.pth')
        _, program, *arguments = shlex.split(command)
        importlib.import_module(program.removesuffix('.py').replace('/', '.')).main(arguments)

    def look_up(self, command):
        # make test-install runs them.
        assert command in install_commands()

    def needs_gpu(self, command):
        with pytest.raises(SystemExit):
            self.run_tool(command)
        assert '--amp needs a GPU' in self.capsys.readouterr().err

    def lacks_weights(self, command):
        with pytest.raises(SystemExit):
            self.run_tool(command)
        assert '.pth is missing; download it from https://' in self.capsys.readouterr().out

    def run_processes(self, command):
        self.bash(re.sub(r'(\.py|\.pth) 8 ', r'\1 2 ', command))

    def one_of_two_nodes(self, command):
        command = command.replace('MASTER_ADDR=10.0.0.1', 'MASTER_ADDR=127.0.0.1')
        command = command.replace('.py 8 ', '.py 1 --work-dir work_dirs/two_nodes ')
        return f'PORT={self.port} {command}'

    def start_first_node(self, command):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self.first_node = subprocess.Popen(
            ['bash', '-euc', self.one_of_two_nodes(command)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run_second_node(self, command):
        try:
            self.bash(self.one_of_two_nodes(command))
            assert self.first_node.wait(TIMEOUT) == 0
        finally:
            self.first_node.kill()
        assert Path('work_dirs/two_nodes/epoch_1.pth').is_file()

    def submit(self, command):
        self.bash(command)
        submitted = json.loads(Path('srun.json').read_text())
        gpus = re.search(r'GPUS=(\d+)', command)[1]
        assert f'--ntasks={gpus}' in submitted
        assert '--partition=PARTITION' in submitted
        python = submitted.index(os.environ['PYTHON'])
        program, *arguments = submitted[python + 2 :]
        tool = {'train.py': train_tool, 'test.py': test_tool}[Path(program).name]
        args = tool.parse_args(arguments)
        assert args.launcher == 'slurm'
        assert Path(args.config).is_file()


@pytest.mark.parametrize('page', PAGES)
def test_page(page, project, data_folders, capsys, request):
    if page in GIVEN:
        request.getfixturevalue(GIVEN[page])
    files, code = python_of(page)
    for name, content in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        Config.fromfile(path)
    commands = commands_of(page)
    assert files or code or commands
    assert bool(commands) == (page not in PYTHON_ONLY)
    shell = Shell(capsys, data_folders)
    for command in commands:
        shell.run(command)
    namespace = {}
    for block in code:
        exec(compile(block, f'{page}.md', 'exec'), namespace)


def test_a_command_without_a_rule_fails(capsys, data_folders):
    with pytest.raises(pytest.fail.Exception, match='No rule covers'):
        Shell(capsys, data_folders).run('make coffee')


def test_every_page_with_commands_is_run():
    pages = [path.stem for path in (ROOT / 'docs').glob('*.md')]
    # Those of the installation are the matter of test_installation.py.
    assert {page for page in pages if commands_of(page)} <= {*PAGES, 'installation'}
