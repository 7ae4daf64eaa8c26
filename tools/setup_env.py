#!/usr/bin/env python3
"""Set up `.venv`, the one environment of this project, and explain what is missing.

Run by `make env` (and so by `make demo` and `make test`) with whichever Python the
machine has; it uses the standard library alone. A second run finds its stamp and returns
at once. An interrupted run is continued by the next one.

mmcv is built with its CPU operators only, on a machine with a GPU too: that is what the
demo and the tests need, in ten minutes and without a CUDA toolkit.

Environment variables:
    PYTHON          interpreter for `.venv` (default: the first fitting one on PATH)
    OVERLOCK_CACHE  where built mmcv wheels are kept (default: ~/.cache/overlock_mm)
    MAX_JOBS        compiler processes while mmcv is built (default: by cores and memory)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from setup_checks import (
    GB,
    SUPPORTED,
    SetupError,
    check_compiler,
    check_disk,
    check_writable,
    choose_python,
    probe,
)

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / 'requirements'
KERNELS = ROOT / 'overlock_mm' / 'ops' / 'csrc'
# Measured: .venv 5.5 GB, torch's downloads 2.6 GB, objects of the mmcv build 0.4 GB.
VENV_BYTES = 6 * GB
DOWNLOAD_BYTES = 3 * GB
BUILD_BYTES = 1 * GB

# Of mmcv, on one core; more cores share it.
BUILD_MINUTES = 18

READ_REMEDY = 'as the lines above say; after a network failure, run the same command again.'
CACHE_REMEDY = 'set OVERLOCK_CACHE to a folder of your own.'

# What a user of the package imports first; each is a way in which a set-up can be broken.
PROOF = 'import mmcv.ops, mmdet.datasets, mmseg.models, mmpretrain.models, overlock_mm'


def minutes(seconds: float) -> str:
    """`75` -> `1:15`."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def cache_root(environ: dict, variable: str, name: str) -> Path:
    """The folder that `variable` names, or `name` in the user's cache by the XDG rule."""
    if environ.get(variable):
        return Path(environ[variable]).expanduser()
    return Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / name


def wheel_folder(cache: Path, version: list, torch_version: str) -> Path:
    """Where an mmcv wheel for this Python and this torch lives.

    pip's own cache knows nothing of the torch that a wheel was compiled against, and after
    an update of torch would hand out a wheel with a foreign ABI.
    """
    return cache / 'wheels' / f'cp{version[0]}{version[1]}-torch{torch_version}'


def first_pin(file: str) -> tuple[str, str]:
    """Name and version of the first distribution that `requirements/<file>` pins."""
    found = re.search(r'^([\w.-]+)==(\S+)', (REQUIREMENTS / file).read_text(), re.M)
    if found is None:
        raise SetupError(f'requirements/{file} pins nothing.', 'add a line NAME==VERSION.')
    return found.group(1), found.group(2)


def cached_wheel(folder: Path) -> Path | None:
    """The finished wheel of the pinned mmcv in `folder`, for this machine's architecture."""
    name, version = first_pin('mmcv.txt')
    pattern = f'{name.replace("-", "_")}-{version}-*{os.uname().machine}.whl'
    return next(iter(sorted(folder.glob(pattern))), None)


class Console:
    """Numbered steps on stdout; the output of the commands themselves goes to a log file."""

    def __init__(self, log: Path, steps: int) -> None:
        self.log = log
        self.steps = steps
        self.step = 0

    @contextlib.contextmanager
    def doing(self, what: str, expected: str):
        """Announce a step with its usual time; afterwards say how long it took."""
        self.step += 1
        print(f'[{self.step}/{self.steps}] {what} (usually {expected})', flush=True)
        start = time.monotonic()
        yield
        print(f'      done in {minutes(time.monotonic() - start)}', flush=True)

    def run(self, command: list, remedy: str, env: dict) -> None:
        """Run a command with its output in the log, and a sign of life while it lasts."""
        command = [str(part) for part in command]
        start = time.monotonic()
        with open(self.log, 'ab') as log:
            log.write(f'\n$ {" ".join(command)}\n'.encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that pip's compilers can be stopped with it
                close_fds=False,  # hands on the lock
            )
            try:
                self._wait(process, start)
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
        if process.returncode != 0:
            tail = '\n'.join(f'    | {line}' for line in self.log_lines()[-15:])
            raise SetupError(
                f'A command failed with exit code {process.returncode}:\n'
                f'    {" ".join(command)}\n{tail}\n  Full output: {self.log}',
                remedy,
            )

    def _wait(self, process: subprocess.Popen, start: float) -> None:
        on_terminal = sys.stdout.isatty()
        interval = 1 if on_terminal else 30
        while True:
            try:
                process.wait(timeout=interval)
                break
            except subprocess.TimeoutExpired:
                last = next((line for line in reversed(self.log_lines()) if line.strip()), '')
                line = f'      {minutes(time.monotonic() - start)}  {last.strip()[:70]}'
                print(f'\r{line:<90}' if on_terminal else line, end='' if on_terminal else '\n')
                sys.stdout.flush()
        if on_terminal:
            print(f'\r{"":<90}\r', end='')

    def log_lines(self) -> list[str]:
        """The last lines of the log (its last 8 kB)."""
        with open(self.log, 'rb') as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            return log.read().decode(errors='replace').splitlines()


@contextlib.contextmanager
def locked(folder: Path):
    """Hold `folder` against a second set-up.

    The system frees it when this process has died, and with it the command that it ran: pip
    may outlive a killed set-up.
    """
    import fcntl  # here, because the module is missing where the set-up refuses to run

    handle = os.open(folder, os.O_RDONLY)
    os.set_inheritable(handle, True)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'Another set-up is at work in {folder}; waiting for it.', flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Environment:
    """`.venv`: whether it is complete, and the steps that complete it."""

    def __init__(self, venv: Path, environ: dict) -> None:
        self.venv = venv
        self.environ = environ
        self.cache = cache_root(environ, 'OVERLOCK_CACHE', 'overlock_mm')
        self.python = venv / 'bin' / 'python'
        self.stamp = venv / 'setup.stamp'
        # Exists while a command writes into the environment: found at the start, it was killed.
        self.unfinished = venv / 'setup.unfinished'
        self.log = venv / 'setup.log'
        self.start_over = f'delete {venv} and run the same command again.'

    def fingerprint(self) -> str:
        """Changes when anything changes that the environment was made from."""
        digest = hashlib.sha256(str(self.venv).encode())
        made_from = [*sorted(Path(__file__).parent.glob('setup_*.py')), ROOT / 'setup.py']
        compiled = sorted(path for path in KERNELS.rglob('*') if path.is_file())
        for path in made_from + sorted(REQUIREMENTS.glob('*.txt')) + compiled:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def is_complete(self) -> bool:
        """True if the last set-up finished and nothing that it depends on has changed."""
        return (
            self.stamp.is_file()
            and self.stamp.read_text() == self.fingerprint()
            and os.access(self.python, os.X_OK)
            and self.fits_wish(self.configured_version())
        )

    def configured_version(self) -> list[int]:
        """The Python version that `.venv` was made with, read without starting it."""
        config = self.venv / 'pyvenv.cfg'
        text = config.read_text() if config.is_file() else ''
        found = re.search(r'^version\s*=\s*(\d+)\.(\d+)\.(\d+)', text, re.M)
        return [int(part) for part in found.groups()] if found else []

    def fits_wish(self, version: list[int]) -> bool:
        """Whether this Python version is the one that PYTHON= asks for, if it asks."""
        wish = self.environ.get('PYTHON')
        return not wish or (probe(wish) or {}).get('version') == version

    def damage(self) -> str | None:
        """Why an existing environment must be made anew, or None."""
        if self.unfinished.exists():
            return f'an earlier set-up was stopped while {self.unfinished.read_text()}'
        facts = probe(str(self.python))
        if facts is None:
            return f'{self.python} does not run'
        version = '.'.join(str(part) for part in facts['version'])
        if tuple(facts['version'][:2]) not in SUPPORTED:
            return f'it has Python {version}'
        if not self.fits_wish(facts['version']):
            return f'it has Python {version}, and PYTHON={self.environ["PYTHON"]} has another'
        if subprocess.call([str(self.python), '-c', 'import pip'], stderr=subprocess.DEVNULL):
            return 'it has no pip'
        return None

    def set_up(self) -> None:
        """Check, then make or complete the environment.

        Raises:
            SetupError: a check or a step failed.
        """
        damage = self.damage() if self.venv.exists() else 'it does not exist'
        if damage:
            facts = choose_python(self.venv, self.environ.get('PYTHON'), self.has_wheel)
        else:
            facts = probe(str(self.python))
        has_wheel = self.has_wheel(facts['version'])
        self.check(facts, bool(damage), has_wheel)

        jobs = self.jobs()
        estimate = 3 * bool(damage) + (not has_wheel) * (BUILD_MINUTES // jobs) or 1
        print(
            f'{"Setting up" if damage else "Completing"} {self.venv} with {facts["executable"]}: '
            f'about {estimate} min on a fast line. Details: {self.log}'
        )
        if damage and self.venv.exists():
            print(f'The environment there is made anew: {damage}.')
            shutil.rmtree(self.venv)
        self.venv.mkdir(exist_ok=True)
        self.log.write_bytes(b'')
        self.install(facts, bool(damage), jobs)

    def has_wheel(self, version: list[int]) -> bool:
        """Whether the cache has an mmcv wheel for this Python and a build of the pinned torch."""
        likely = wheel_folder(self.cache, version, first_pin('torch.txt')[1] + '*')
        return any(cached_wheel(folder) for folder in likely.parent.glob(likely.name))

    def check(self, facts: dict, fresh: bool, has_wheel: bool) -> None:
        """Everything that can be known to fail is refused here, before the long work."""
        check_writable(self.venv.parent, 'work in a copy of the project that is yours.')
        needs = []
        if fresh:
            needs.append((self.venv, VENV_BYTES, '.venv'))
            needs.append((Path(tempfile.gettempdir()), DOWNLOAD_BYTES, 'downloads'))
            needs.append(
                (cache_root(self.environ, 'PIP_CACHE_DIR', 'pip'), DOWNLOAD_BYTES, "pip's cache")
            )
        if not has_wheel:
            check_compiler(facts['include'], self.environ)
            check_writable(self.cache / 'wheels', CACHE_REMEDY)
            needs.append((self.cache, BUILD_BYTES, 'the build of mmcv'))
        check_disk(needs)

    def jobs(self) -> int:
        """Compiler processes: MAX_JOBS, or one per core with 1.5 GB of memory for each."""
        if self.environ.get('MAX_JOBS', '').isdigit():
            return max(1, int(self.environ['MAX_JOBS']))
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        return max(1, min(len(os.sched_getaffinity(0)), 2 * memory // (3 * GB)))

    def install(self, facts: dict, fresh: bool, jobs: int) -> None:
        """The steps, in the order in which the packages depend on each other."""
        console = Console(self.log, steps=7)
        from_source = ['--no-deps', '--no-build-isolation']
        pins = ['-c', 'requirements/torch.txt', '-c', 'requirements/build.txt']

        with console.doing('environment folder', '5 s'):
            if fresh:
                command = [facts['executable'], '-m', 'venv', self.venv]
                self.change(console, command, 'install the venv module of this Python.')
        with console.doing('torch and torchvision, 2.6 GB to download', '1 to 5 min'):
            self.pip(console, '-r', 'requirements/torch.txt')
        with console.doing('build tools and numpy', '10 s'):
            self.pip(console, '-r', 'requirements/build.txt', *pins)
        wheel = self.mmcv_wheel(console, jobs)
        with console.doing('OpenMMLab stack and development tools', '40 s'):
            # By force, because an installed mmcv of this version may belong to another torch.
            self.pip(console, '--no-deps', '--force-reinstall', wheel)
            tools = ['-r', 'requirements/runtime.txt', '-r', 'requirements/dev.txt']
            self.pip(console, *tools, *pins)
            self.pip(console, *from_source, '-r', 'requirements/openmmlab.txt')
        # CUDA kernels take minutes to compile and are of use beside a GPU alone.
        self.environ.setdefault('FORCE_CUDA', '' if Path('/dev/nvidia0').exists() else '0')
        self.environ['MAX_JOBS'] = str(jobs)
        with console.doing('overlock_mm itself, editable, and its compiled operators', '2 min'):
            self.pip(console, *from_source, '-e', '.')
        with console.doing('proof: importing all of it', '20 s'):
            remedy = f'delete {wheel}, which may be for another torch. Else {self.start_over}'
            console.run([self.python, '-c', PROOF], remedy, self.clean_environ())
        self.stamp.write_text(self.fingerprint())
        print(f'Environment ready: {self.venv}', flush=True)

    def mmcv_wheel(self, console: Console, jobs: int) -> Path:
        """The mmcv wheel for the installed torch, from the cache or built into it."""
        version = probe(str(self.python))['version']
        ask_torch = [str(self.python), '-c', 'import torch; print(torch.__version__)']
        answer = subprocess.run(ask_torch, stdout=subprocess.PIPE, env=self.clean_environ())
        if answer.returncode != 0:
            raise SetupError('torch was installed, but cannot be imported.', self.start_over)
        folder = wheel_folder(self.cache, version, answer.stdout.decode().strip())
        if cached_wheel(folder):
            what, expected = 'from the cache', '1 s'
        else:
            what, expected = f'compiled by {jobs} jobs', f'{BUILD_MINUTES // jobs + 1} min'
            check_writable(folder, CACHE_REMEDY)
        with console.doing(f'mmcv for {folder.name}, {what}', expected), locked(folder):
            return cached_wheel(folder) or self.build_mmcv(console, folder, jobs)

    def build_mmcv(self, console: Console, folder: Path, jobs: int) -> Path:
        """Build the wheel aside and move it into `folder` whole; `folder` is locked."""
        check_compiler(probe(str(self.python))['include'], self.environ)
        for left_by_a_killed_build in folder.glob('building-*'):
            shutil.rmtree(left_by_a_killed_build)
        with tempfile.TemporaryDirectory(prefix='building-', dir=folder) as scratch:
            env = dict(
                self.clean_environ(),
                MMCV_WITH_OPS='1',
                MAX_JOBS=str(jobs),
                TMPDIR=scratch,
                CUDA_VISIBLE_DEVICES='',  # or mmcv would look for a CUDA toolkit
                FORCE_CUDA='0',
            )
            command = [self.python, '-m', 'pip', 'wheel', '-v', '--no-deps', '--no-cache-dir']
            command += ['--no-build-isolation', '-w', scratch, '-r', 'requirements/mmcv.txt']
            console.run(command, f'see the compiler messages in {self.log}.', env)
            built = cached_wheel(Path(scratch))
            if built is None:
                raise SetupError(f'No wheel came out of building mmcv: {self.log}', READ_REMEDY)
            os.replace(built, folder / built.name)
            return folder / built.name

    def pip(self, console: Console, *arguments: object) -> None:
        """Install with pip as the user has configured it."""
        command = [self.python, '-m', 'pip', 'install', '--progress-bar', 'off', *arguments]
        self.change(console, command, READ_REMEDY)

    def change(self, console: Console, command: list, remedy: str) -> None:
        """Run a command that writes into the environment, and leave a mark meanwhile."""
        self.unfinished.write_text(f'running {" ".join(str(part) for part in command[1:4])}')
        try:
            console.run(command, remedy, self.clean_environ())
        except SetupError:
            self.unfinished.unlink()  # the command ended by itself and cleaned up behind itself
            raise
        self.unfinished.unlink()

    def clean_environ(self) -> dict:
        """The user's variables, less what would lead Python or pip out of `.venv`."""
        kept = {k: v for k, v in self.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
        # PATH, because torch looks there for ninja, without which mmcv compiles on one core.
        path = f'{self.python.parent}{os.pathsep}{kept.get("PATH", os.defpath)}'
        return dict(kept, PATH=path, PIP_USER='0', PIP_DISABLE_PIP_VERSION_CHECK='1')


def main() -> int:
    """Set up `.venv` beside this script's folder; 0 if it is complete afterwards."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environment = Environment(ROOT / '.venv', dict(os.environ))
    try:
        if sys.platform != 'linux':
            raise SetupError(
                f'This is {sys.platform}; the set-up knows Linux only.',
                'use Linux (a container or WSL 2 will do), or install the package into an '
                'OpenMMLab 2.x environment of your own: pip install -e .',
            )
        if not environment.is_complete():
            with locked(ROOT):
                if not environment.is_complete():
                    environment.set_up()
    except (SetupError, OSError) as error:
        print(f'Set-up stopped. {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nSet-up interrupted; the same command continues it.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
