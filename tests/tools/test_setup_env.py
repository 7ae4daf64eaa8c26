"""setup_env.sh with a uv and a Python that download nothing but note what they were asked."""

import re
import signal
import subprocess
import time
from importlib import metadata
from pathlib import Path
from shutil import copy, copytree, which

import pytest

from tests.fixtures import maintained_stack

ROOT = Path(__file__).resolve().parents[2]

maintained = pytest.mark.skipif(
    not maintained_stack(), reason='In this checkout the pins are those of another stack.'
)

# FAKE_FAIL and FAKE_HANG hold a word of the command that fails, or that lasts until the file
# `release` exists.
COMMON = """#!/bin/sh
echo "$(basename "$0") $*" >>"$FAKE_RECORD"
case "$*" in *"${FAKE_FAIL:-nothing at all}"*) echo 'no route to the index'; exit 3;; esac
case "$*" in *"${FAKE_HANG:-nothing at all}"*)
    while [ ! -e "$FAKE_RECORD.release" ]; do sleep 0.02; done;;
esac
"""

UV = (
    COMMON
    + r"""
case "$1 $2" in
"python find") echo "/usr/bin/python-for-$4" ;;
"venv "*)
    for folder; do :; done
    mkdir -p "$folder/bin"
    cp "$FAKE_INNER" "$folder/bin/python" ;;
esac
"""
)

# The interpreter of the environment.
INNER = (
    COMMON
    + r"""
value() { # NAME ARGUMENT...: what stands behind the option NAME
    wanted=$1; shift
    while [ "$1" != "$wanted" ]; do shift; done
    echo "$2"
}
case "$*" in
*torch.__version__\)) echo "${FAKE_TORCH:-2.11.0+cu130}" ;;
*TorchVersion*) case "${FAKE_TORCH:-2.11.0}" in 2.14*) ;; *) exit 1 ;; esac ;;
*version_info*) echo cp311 ;;
*"pip download"*)
    folder=$(value -d "$@")
    mkdir "$folder/mmcv-1"
    echo "extra_compile_args = ['-std=c++17']" >"$folder/mmcv-1/setup.py"
    tar -czf "$folder/mmcv-1.tar.gz" -C "$folder" mmcv-1 ;;
*"pip wheel"*)
    for source; do :; done
    cat "$source/setup.py" >>"$FAKE_RECORD"
    touch "$(value -w "$@")/onedl_mmcv-1-cp311.whl" ;;
*"-e ."*) echo '  overlock_mm is compiled without CUDA kernels: no nvcc.' ;;
esac
"""
)

PROGRAMS = [
    'awk',
    'basename',
    'cat',
    'cksum',
    'cp',
    'date',
    'df',
    'dirname',
    'find',
    'flock',
    'getconf',
    'grep',
    'gzip',
    'head',
    'mkdir',
    'mktemp',
    'mv',
    'rm',
    'sed',
    'sh',
    'sleep',
    'sort',
    'tail',
    'tar',
    'touch',
    'tr',
    'uname',
    'xargs',
]


class Machine:
    """A machine with a copy of the set-up, a PATH of its own, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / 'project'
        copytree(ROOT / 'requirements', self.project / 'requirements')
        for name in ('tools/dev/setup_env.sh', 'setup.py', 'pyproject.toml'):
            (self.project / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, self.project / name)
        self.kernel = self.project / 'overlock_mm' / 'ops' / 'csrc' / 'kernel.cpp'
        self.kernel.parent.mkdir(parents=True)
        self.kernel.touch()
        self.venv = self.project / '.venv'
        self.log = self.venv / 'setup.log'
        self.path = folder / 'path'
        self.path.mkdir()
        for name in PROGRAMS:
            (self.path / name).symlink_to(which(name))
        self.program('uv', UV)
        self.cache = folder / 'cache'
        self.record = folder / 'record'
        self.environ = {
            'PATH': str(self.path),
            'HOME': str(folder),
            'OVERLOCK_CACHE': str(self.cache),
            'FAKE_RECORD': str(self.record),
            'FAKE_INNER': str(self.program('inner', INNER)),
        }

    def program(self, name: str, text: str) -> Path:
        path = self.path / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, **environ: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(self.project / 'tools' / 'dev' / 'setup_env.sh')],
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def set_up(self, **environ: str) -> tuple[int, str, list[str]]:
        """Exit code, all output, and the commands that were run."""
        self.record.write_text('')
        process = self.start(**environ)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output, self.record.read_text().splitlines()

    def wait_for(self, word: str) -> None:
        """Return when a command with `word` has begun."""
        end = time.monotonic() + 60
        while word not in self.record.read_text():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_first_run_installs_in_order_and_second_run_does_nothing(machine):
    code, output, commands = machine.set_up()
    assert code == 0, output
    kinds = [re.sub(r'--python \S+ |-r requirements/|/\S*/', '', line) for line in commands]
    admitted = (ROOT / 'requirements' / 'python.txt').read_text().strip()
    assert kinds == [
        f'uv python find --system {admitted}',
        'uv venv --allow-existing --seed .venv',
        'uv pip install torch.txt build.txt runtime.txt dev.txt',
        'uv pip install --no-deps openmmlab.txt',
        'uv pip install --no-deps mmcv.txt',
        'python -m pip install -v --no-deps --no-build-isolation -e .',
        'python -c import overlock_mm, mmcv.ops, mmdet.datasets, mmseg.models, mmpretrain.models',
    ]
    assert '[5/5]' in output and 'done in 0:0' in output

    code, output, commands = machine.set_up()
    assert (code, output, commands) == (0, '', [])


def test_what_the_compilation_left_out_is_said(machine):
    _, output, _ = machine.set_up()
    assert 'overlock_mm is compiled without CUDA kernels: no nvcc.' in output


def test_changed_pin_makes_the_environment_from_scratch(machine):
    machine.set_up()
    with open(machine.project / 'requirements' / 'dev.txt', 'a') as pins:
        pins.write('pytest-cov\n')
    code, output, commands = machine.set_up()
    assert code == 0, output
    assert any(line.startswith('uv venv') for line in commands)


def test_changed_kernel_compiles_only_the_package(machine):
    machine.set_up()
    machine.kernel.write_text('// changed')
    code, output, commands = machine.set_up()
    assert code == 0 and 'Completing' in output
    assert len(commands) == 2 and commands[0].endswith('-e .')


@pytest.mark.parametrize(
    ('first', 'second'), [({}, {'MMCV': 'compiled'}), ({}, {'PYTHON': '3.12'})], ids=str
)
def test_another_choice_makes_the_environment_from_scratch(machine, first, second):
    machine.set_up(**first)
    code, output, commands = machine.set_up(**second)
    assert code == 0, output
    assert any(line.startswith('uv venv') for line in commands)


@pytest.mark.parametrize(
    ('torch', 'standard'), [('2.11.0+cu130', 'c++17'), ('2.14.1+cu130', 'c++20')]
)
def test_compiled_mmcv_gets_the_standard_of_torch_and_is_kept_by_its_version(
    machine, torch, standard
):
    code, output, commands = machine.set_up(MMCV='compiled', FAKE_TORCH=torch)
    assert code == 0, output
    assert f"extra_compile_args = ['-std={standard}']" in commands
    folder = machine.cache / 'wheels' / f'cp311-torch{torch}'
    assert [path.name for path in folder.iterdir()] == ['onedl_mmcv-1-cp311.whl']
    assert f'install --python {machine.venv}/bin/python --no-deps {folder}' in '\n'.join(commands)

    machine.venv.rename(machine.project / 'gone')
    code, output, commands = machine.set_up(MMCV='compiled', FAKE_TORCH=torch)
    assert code == 0, output
    assert not any('pip wheel' in line for line in commands)
    assert f'--no-deps {folder}' in '\n'.join(commands)


def test_failed_compilation_leaves_nothing_in_the_cache(machine):
    code, output, _ = machine.set_up(MMCV='compiled', FAKE_FAIL='pip wheel')
    assert code == 1 and 'no route to the index' in output
    assert list((machine.cache / 'wheels' / 'cp311-torch2.11.0+cu130').iterdir()) == []


def test_unknown_kind_of_mmcv_is_refused(machine):
    code, output, commands = machine.set_up(MMCV='full')
    assert code == 1 and commands == []
    assert 'MMCV is "full"' in output and 'make env MMCV=compiled' in output


def test_no_fitting_python_stops_before_anything_is_made(machine):
    code, output, commands = machine.set_up(PYTHON='3.9', FAKE_FAIL='python find')
    assert code == 1 and len(commands) == 1
    assert 'No fitting Python: 3.9 is needed' in output and 'make env PYTHON=' in output
    assert not machine.venv.exists()


def test_small_disk_stops_before_anything_is_made(machine):
    machine.program('df', '#!/bin/sh\necho header\necho "/dev/x 9 9 3000000 1% /"\n')
    code, output, _ = machine.set_up()
    assert code == 1
    assert '3 GB free, 8 GB needed' in output
    assert not machine.venv.exists()


def test_failing_command_is_quoted_and_the_next_run_starts_over(machine):
    code, output, _ = machine.set_up(FAKE_FAIL='openmmlab.txt')
    assert code == 1
    assert '| no route to the index' in output and 'Remedy:' in output
    assert str(machine.log) in output
    assert 'mmcv.txt' not in machine.record.read_text()

    code, output, commands = machine.set_up()
    assert code == 0, output
    assert any(line.startswith('uv venv') for line in commands)


def test_killed_set_up_is_continued(machine):
    machine.record.write_text('')
    process = machine.start(FAKE_HANG='torch.txt')
    machine.wait_for('torch.txt')
    process.send_signal(signal.SIGKILL)
    machine.record.with_name('record.release').touch()
    process.communicate(timeout=60)
    code, output, commands = machine.set_up()
    assert code == 0, output
    assert any(line.startswith('uv venv') for line in commands)


def test_interrupt_says_how_to_continue(machine):
    machine.record.write_text('')
    process = machine.start(FAKE_HANG='torch.txt')
    machine.wait_for('torch.txt')
    process.send_signal(signal.SIGTERM)
    machine.record.with_name('record.release').touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'the same command continues it' in output


def test_second_set_up_waits_for_the_first(machine):
    machine.record.write_text('')
    first = machine.start(FAKE_HANG='torch.txt')
    machine.wait_for('torch.txt')
    second = machine.start()
    assert 'waiting for it' in second.stdout.readline()
    machine.record.with_name('record.release').touch()
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert machine.record.read_text().count('uv venv') == 1


def test_uv_is_installed_beside_the_environment_where_the_machine_has_none(machine):
    (machine.path / 'uv').unlink()
    python = COMMON + (
        'case "$*" in *"-m venv"*) mkdir -p .uv/bin; cp "$0" .uv/bin/python;;'
        ' *"pip install"*) cp "$FAKE_UV" .uv/bin/uv;; esac\n'
    )
    machine.program('python3', python)
    machine.environ['FAKE_UV'] = str(machine.program('a-uv', UV))
    code, output, commands = machine.set_up()
    assert code == 0, output
    assert 'python -m pip install -q --disable-pip-version-check uv' in commands
    assert (machine.project / '.uv' / 'bin' / 'uv').exists()


def test_machine_without_uv_and_python_is_told_what_to_install(machine):
    (machine.path / 'uv').unlink()
    code, output, _ = machine.set_up()
    assert code == 1
    assert 'Neither uv nor a Python' in output and 'apt install python3' in output


def test_package_requires_no_distribution_of_the_openmmlab_stack():
    required = [line for line in metadata.requires('overlock_mm') if 'extra ==' not in line]
    names = {re.match(r'[\w.-]+', line).group() for line in required}
    # Not torch either, which exported files do not need.
    assert names == {'numpy', 'pillow'}


@maintained
def test_maintained_stack_of_the_package_is_the_one_that_is_pinned():
    extra = [
        line for line in metadata.requires('overlock_mm') if re.search('extra == .openmmlab', line)
    ]
    wanted = dict(re.match(r'([\w-]+)>=([\w.]+)', line).groups() for line in extra)
    files = ('mmcv.txt', 'openmmlab.txt', 'runtime.txt')
    text = '\n'.join((ROOT / 'requirements' / file).read_text() for file in files)
    pins = dict(re.findall(r'^((?:onedl|faster)[\w-]+)==(\S+)$', text, re.M))
    if 'onedl-mmcv' not in pins:
        pytest.skip('The requirements of this checkout are those of another stack.')
    assert wanted == pins


def test_every_stack_replaces_the_files_that_differ():
    names = {path.name for path in (ROOT / 'requirements').glob('*.txt')}
    for stack in (path for path in (ROOT / 'requirements').iterdir() if path.is_dir()):
        assert {path.name for path in stack.iterdir()} <= names, stack
