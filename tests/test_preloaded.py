"""The Python that other tests start tools with behaves like Python."""

import os
import signal
import subprocess

import pytest


@pytest.mark.parametrize(
    ('code', 'status', 'errors'),
    [
        ('pass', 0, ''),
        ('import sys; sys.exit(3)', 3, ''),
        ('raise SystemExit("no")', 1, 'no\n'),
        ('import os; os.abort()', -signal.SIGABRT, ''),
    ],
)
def test_the_exit_status_arrives(run_python, code, status, errors):
    result = run_python('-c', code)
    assert (result.returncode, result.stderr) == (status, errors)


def test_an_error_is_printed_with_its_lines(run_python, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('def f():\n    raise ValueError("wrong")\n\n\nf()\n')
    result = run_python(script)
    assert result.returncode == 1
    assert f'File "{script}", line 2, in f' in result.stderr
    assert result.stderr.endswith('ValueError: wrong\n')


def test_streams_folder_environment_and_arguments_are_those_of_the_caller(run_python, tmp_path):
    code = 'import os, sys; print(input(), os.getcwd(), os.environ["HOME"], sys.argv)'
    result = run_python('-c', code, 'one', 'two', cwd=tmp_path, input='typed\n')
    assert result.stdout == f"typed {tmp_path} {os.environ['HOME']} ['-c', 'one', 'two']\n"


def test_each_run_draws_its_own_random_numbers(run_python):
    code = 'import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1))'
    first, second = (run_python('-c', code).stdout.split() for _ in range(2))
    assert all(one != two for one, two in zip(first, second, strict=True))


def test_a_signal_reaches_the_run(preloaded_python):
    code = (
        'import signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n'
        'print("ready", flush=True)\n'
        'time.sleep(60)'
    )
    with subprocess.Popen([preloaded_python, '-c', code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'ready\n'
        process.terminate()
        assert process.wait(30) == 7
