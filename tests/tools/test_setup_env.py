import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from shutil import copy, copytree, which

import pytest

from tests.conftest import maintained_stack

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
checks = import_module('setup_checks')
setup_env = import_module('setup_env')
sys.path.remove(str(ROOT / 'tools'))

maintained = pytest.mark.skipif(
    not maintained_stack(), reason='In this checkout the pins are those of the original stack.'
)

# An interpreter that answers as one of another version would, and a pip that downloads
# nothing: it writes down what it was asked for. FAKE_FAIL and FAKE_HANG hold a word of the
# command that fails, or that lasts as long as the set-up lives.
FAKE_PYTHON = """#!{python}
import ensurepip, os, pathlib, sys, sysconfig, time, venv
arguments = sys.argv[1:]
line = ' '.join(arguments)
here = pathlib.Path(sys.argv[0])
if arguments[0] == '-c' and 'sys.implementation' in line:
    sys.version_info, sys.executable, sys.prefix = {version}, str(here), str(here.parents[1])
    sysconfig.get_paths = lambda *_: dict(include={include!r})
    exec(arguments[1])
    sys.exit()
if arguments[0] == '-c':
    print('2.11.0+cu130' if 'torch' in line else '')
    sys.exit()
with open(os.environ['FAKE_RECORD'], 'a') as record:
    record.write(line + '\\n')
if os.environ.get('FAKE_FAIL', 'nothing') in line:
    sys.exit('no route to the index')
parent = os.getppid()
while os.environ.get('FAKE_HANG', 'nothing') in line and os.getppid() == parent:
    time.sleep(0.02)
if arguments[1] == 'venv':
    inner = pathlib.Path(arguments[2], 'bin', 'python')
    inner.parent.mkdir(parents=True, exist_ok=True)
    inner.write_text(here.read_text())
    inner.chmod(0o755)
    version = '.'.join(str(part) for part in {version})
    pathlib.Path(arguments[2], 'pyvenv.cfg').write_text('version = ' + version)
if arguments[1:3] == ['pip', 'wheel']:
    folder = pathlib.Path(arguments[arguments.index('-w') + 1])
    (folder / '{mmcv}-cp311-cp311-linux_{machine}.whl').touch()
"""


class Machine:
    """A machine with a copy of the set-up, a PATH of its own, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / 'project'
        copytree(ROOT / 'requirements', self.project / 'requirements')
        (self.project / 'tools').mkdir()
        for path in (ROOT / 'tools').glob('setup_*.py'):
            copy(path, self.project / 'tools')
        copy(ROOT / 'setup.py', self.project)
        self.venv = self.project / '.venv'
        self.path = folder / 'path'
        self.path.mkdir()
        self.headers = folder / 'include'
        self.headers.mkdir()
        (self.headers / 'Python.h').touch()
        self.cache = folder / 'cache'
        self.record = folder / 'record'
        self.environ = {
            'PATH': str(self.path),
            'HOME': str(folder),
            'OVERLOCK_CACHE': str(self.cache),
            'FAKE_RECORD': str(self.record),
        }

    def program(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, name: str, version: tuple = (3, 11, 7), include: Path | None = None) -> Path:
        text = FAKE_PYTHON.format(
            python=sys.executable,
            version=version,
            include=str(include or self.headers),
            mmcv='-'.join(setup_env.first_pin('mmcv.txt')).replace('onedl-', 'onedl_'),
            machine=os.uname().machine,
        )
        return self.program(name, text)

    def compiler(self, text: str = 'exit 0') -> None:
        self.program('c++', f'#!/bin/sh\n{text}\n')

    def start(self, **environ: str) -> subprocess.Popen:
        command = [sys.executable, str(self.project / 'tools' / 'setup_env.py')]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        environ = {**self.environ, **environ}
        return subprocess.Popen(command, env=environ, **pipes)

    def set_up(self, **environ: str) -> tuple[int, str, list[str]]:
        """Exit code, all output, and the commands that were run."""
        self.record.write_text('')
        process = self.start(**environ)
        out, err = process.communicate(timeout=300)
        assert 'Traceback' not in err, err
        return process.returncode, out + err, self.record.read_text().splitlines()

    def stopped_while(self, word: str, how: signal.Signals) -> tuple[int, str]:
        """Signal the set-up in the midst of a command; exit code and errors."""
        self.record.write_text('')
        process = self.start(FAKE_HANG=word)
        while process.poll() is None and word not in self.record.read_text():
            time.sleep(0.02)
        process.send_signal(how)
        _, err = process.communicate(timeout=300)
        assert word in self.record.read_text(), err
        return process.returncode, err


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def good_machine(machine):
    machine.python('python3')
    machine.compiler()
    return machine


@maintained
def test_first_run_installs_in_order_and_second_run_does_nothing(good_machine):
    code, output, commands = good_machine.set_up()
    assert code == 0, output
    asked = [re.sub(r'^-m (pip install --progress-bar off )?', '', line) for line in commands]
    assert asked[0].startswith('venv ')
    assert asked[1] == '-r requirements/torch.txt'
    assert asked[2].startswith('-r requirements/build.txt')
    assert asked[3].startswith('pip wheel') and '--no-cache-dir' in asked[3]
    assert 'onedl_mmcv' in asked[4]
    assert '-r requirements/runtime.txt' in asked[5]
    assert asked[6] == '--no-deps --no-build-isolation -r requirements/openmmlab.txt'
    assert asked[7] == '--no-deps --no-build-isolation -e .'
    assert '[7/7]' in output and 'done in' in output

    code, output, commands = good_machine.set_up()
    assert (code, output, commands) == (0, '', [])


@maintained
def test_wheel_is_kept_by_python_and_torch_version_and_used_by_the_next_checkout(good_machine):
    good_machine.set_up()
    folder = good_machine.cache / 'wheels' / 'cp311-torch2.11.0+cu130'
    assert [path.suffix for path in folder.iterdir()] == ['.whl']

    good_machine.venv.rename(good_machine.project / 'gone')
    (good_machine.path / 'c++').unlink()
    code, output, commands = good_machine.set_up()
    assert code == 0, output
    assert not any('pip wheel' in line for line in commands)
    assert any(str(folder) in line for line in commands)


def test_wheel_of_another_torch_or_python_is_not_used(good_machine):
    for name in ('cp311-torch2.10.0+cu128', 'cp312-torch2.11.0+cu130'):
        folder = good_machine.cache / 'wheels' / name
        folder.mkdir(parents=True)
        (folder / f'onedl_mmcv-2.3.6-cp311-cp311-linux_{os.uname().machine}.whl').touch()
    code, output, commands = good_machine.set_up()
    assert code == 0, output
    assert any('pip wheel' in line for line in commands)


def test_changed_pin_completes_the_same_environment(good_machine):
    good_machine.set_up()
    with open(good_machine.project / 'requirements' / 'dev.txt', 'a') as pins:
        pins.write('pytest-xdist\n')
    code, output, commands = good_machine.set_up()
    assert code == 0, output
    assert commands and not any(line.startswith('-m venv') for line in commands)


def test_first_fitting_python_is_taken(machine):
    machine.compiler()
    machine.python('python3', version=(3, 9, 18))
    machine.program('python3.12', '#!/bin/sh\necho "pyenv: command not found" >&2; exit 127\n')
    machine.python('python3.11', include=machine.headers / 'nowhere')
    machine.python('python3.10', version=(3, 10, 13))
    code, output, _ = machine.set_up()
    assert code == 0, output
    assert f'with {machine.path}/python3.10:' in output


def test_no_fitting_python_names_each_and_the_remedy(machine):
    machine.compiler()
    machine.python('python3', version=(3, 13, 0))
    machine.python('python3.11', include=machine.headers / 'nowhere')
    code, output, commands = machine.set_up()
    assert code == 1 and commands == []
    assert 'python3: is Python 3.13.0' in output
    assert 'python3.12: not found, or it does not run' in output
    assert re.search(r'python3.11: has no C headers .*nowhere', output)
    assert 'Remedy:' in output and 'PYTHON=' in output
    assert not machine.venv.exists()


def test_wished_python_is_refused_rather_than_replaced(good_machine):
    wish = good_machine.python('python3.9', version=(3, 9, 18))
    code, output, _ = good_machine.set_up(PYTHON=str(wish))
    assert code == 1
    assert f'{wish}: is Python 3.9.18' in output


def test_another_wished_python_makes_the_environment_anew(good_machine):
    good_machine.set_up()
    wish = good_machine.python('python3.12', version=(3, 12, 1))
    code, output, commands = good_machine.set_up(PYTHON=str(wish))
    assert code == 0, output
    assert 'made anew: it has Python 3.11.7' in output
    assert commands[0].startswith('-m venv')


def test_python_without_venv_or_of_the_environment_itself_is_refused(tmp_path):
    facts = checks.probe(sys.executable)
    venv = Path(facts['prefix'])
    assert checks.interpreter_faults(dict(facts, prefix='/usr'), venv, lambda _: True) == []
    faults = checks.interpreter_faults(dict(facts, can_make_venv=False), venv, lambda _: True)
    assert len(faults) == 2
    assert 'venv and ensurepip' in faults[0] and 'very environment' in faults[1]


def test_missing_compiler_is_told_before_anything_is_made(machine):
    machine.python('python3')
    code, output, commands = machine.set_up()
    assert code == 1 and commands == []
    assert 'No C++ compiler: c++ is not on PATH' in output and 'build-essential' in output
    assert not machine.venv.exists()


def test_compiler_that_cannot_compile_is_quoted(machine):
    machine.python('python3')
    machine.compiler('echo "<stdin>:2: fatal error: vector: No such file" >&2; exit 1')
    code, output, commands = machine.set_up()
    assert code == 1 and commands == []
    assert 'c++ cannot compile C++17: <stdin>:2: fatal error: vector' in output


def test_unwritable_cache_is_told(good_machine, tmp_path):
    (tmp_path / 'file').touch()
    code, output, commands = good_machine.set_up(OVERLOCK_CACHE=str(tmp_path / 'file' / 'cache'))
    assert code == 1 and commands == []
    assert 'file/cache/wheels is not writable' in output and 'set OVERLOCK_CACHE' in output


def test_disk_needs_are_added_up_by_file_system(tmp_path):
    needs = [(tmp_path / 'not' / 'yet', 6 * checks.GB, '.venv'), (tmp_path, checks.GB, 'the rest')]
    checks.check_disk(needs, free=lambda _: 7 * checks.GB)
    with pytest.raises(checks.SetupError, match=r'6\.9 GB free, 7 GB needed .*\.venv 6 GB, the re'):
        checks.check_disk(needs, free=lambda _: 6.9 * checks.GB)


def test_cache_folder_follows_the_environment_variables():
    def folder(**environ):
        return setup_env.cache_root(environ, 'OVERLOCK_CACHE', 'overlock_mm')

    assert folder(OVERLOCK_CACHE='/a', XDG_CACHE_HOME='/b') == Path('/a')
    assert folder(XDG_CACHE_HOME='/b') == Path('/b/overlock_mm')
    assert folder() == Path.home() / '.cache' / 'overlock_mm'


def test_failing_command_is_quoted_and_the_next_run_resumes(good_machine):
    code, output, _ = good_machine.set_up(FAKE_FAIL='runtime.txt')
    assert code == 1
    assert '| no route to the index' in output and 'Remedy:' in output
    assert str(good_machine.venv / 'setup.log') in output

    code, output, commands = good_machine.set_up()
    assert code == 0, output
    assert not any(line.startswith(('-m venv', '-m pip wheel')) for line in commands)


def test_killed_install_is_made_anew(good_machine):
    good_machine.stopped_while('torch.txt', signal.SIGKILL)
    code, output, commands = good_machine.set_up()
    assert code == 0, output
    assert 'made anew: an earlier set-up was stopped while running -m pip install' in output
    assert commands[0].startswith('-m venv')


def test_killed_build_leaves_no_wheel_and_keeps_the_environment(good_machine):
    good_machine.stopped_while('pip wheel', signal.SIGKILL)
    folder = good_machine.cache / 'wheels' / 'cp311-torch2.11.0+cu130'
    assert [path.suffix for path in folder.iterdir()] == ['']  # the folder it was building in
    code, output, commands = good_machine.set_up()
    assert code == 0, output
    assert [path.suffix for path in folder.iterdir()] == ['.whl']
    assert not any(line.startswith('-m venv') for line in commands)


def test_environment_whose_python_is_gone_is_made_anew(good_machine):
    good_machine.set_up()
    inner = good_machine.venv / 'bin' / 'python'
    inner.unlink()
    inner.symlink_to('/nowhere/python3')
    code, output, _ = good_machine.set_up()
    assert code == 0, output
    assert f'made anew: {inner} does not run' in output


def test_interrupt_says_how_to_continue(good_machine):
    code, err = good_machine.stopped_while('torch.txt', signal.SIGTERM)
    assert code == 130
    assert 'the same command continues it' in err and 'Traceback' not in err


def test_second_set_up_waits_for_the_first(good_machine):
    good_machine.record.write_text('')
    runs = [good_machine.start() for _ in range(2)]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert good_machine.record.read_text().count('-m venv') == 1
    assert any('waiting for it' in output for output in outputs)


def test_other_systems_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert setup_env.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert 'This is darwin; the set-up knows Linux only' in capsys.readouterr().err


def test_make_without_any_python_says_so(tmp_path):
    make = which('make')
    done = subprocess.run(
        [make, '-C', str(ROOT), 'env'], env={'PATH': str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert 'Remedy: install Python 3.10, 3.11 or 3.12' in done.stderr


def test_package_requires_no_distribution_of_the_openmmlab_stack():
    required = [line for line in metadata.requires('overlock_mm') if 'extra ==' not in line]
    names = {re.match(r'[\w.-]+', line).group() for line in required}
    assert names == {'torch', 'numpy', 'pillow'}


@maintained
def test_maintained_stack_of_the_package_is_the_one_that_is_pinned():
    extra = [
        line for line in metadata.requires('overlock_mm') if re.search('extra == .openmmlab', line)
    ]
    wanted = dict(re.match(r'([\w-]+)>=([\w.]+)', line).groups() for line in extra)
    files = ('mmcv.txt', 'openmmlab.txt', 'runtime.txt')
    text = '\n'.join((ROOT / 'requirements' / file).read_text() for file in files)
    pins = dict(re.findall(r'^((?:onedl|faster)[\w-]+)==(\S+)$', text, re.M))
    assert wanted == pins
