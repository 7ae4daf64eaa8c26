"""Fixtures and rules of all tests."""

import gc
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.preloaded import PreloadedPython

if importlib.util.find_spec('mmengine') is not None:
    from tests.fixtures import (  # noqa: F401
        fresh_globals_of_mmengine,
        of_five_bands,
        pictures,
        shapes_root,
        tiny_run,
        tools_leave_no_trace,
        untrained,
    )

ROOT = Path(__file__).resolve().parents[1]
# Not what the user's own measurements prefer.
os.environ['OVERLOCK_BACKENDS'] = str(ROOT / 'tests/no_backends.json')
DEMO = str(ROOT / 'configs/demo/cascade_overlock_shapes.py')


def pytest_collection_modifyitems(items):
    """Of the golden cases, the quick ones are small images through the smallest variant."""
    for item in items:
        case = item.callspec.params.get('case') if hasattr(item, 'callspec') else None
        if isinstance(case, dict) and 'variant' in case:
            batch, _, height, width = case['input']
            pixels = batch * height * width
            if case['variant'] != 'xt' or pixels > 10_000:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Leave the imported libraries out of garbage collections.

    mmengine collects after each data set that it builds, which takes half a second with them.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def preloaded_python(tmp_path_factory):
    """Path of a Python that starts with the libraries imported, once for each test worker."""
    python = PreloadedPython(tmp_path_factory.mktemp('python'))
    yield str(python.executable)
    python.close()


@pytest.fixture(scope='session')
def run_python(preloaded_python):
    """Run a Python command line of the project in a process of its own, with one thread."""

    def run(*arguments, **kwargs):
        environment = os.environ | {
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
            'PYTHON_EXEC': preloaded_python,  # what torchrun starts
            'OMP_NUM_THREADS': '1',
        }
        return subprocess.run(
            [preloaded_python, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            **kwargs,
        )

    return run


@pytest.fixture
def one_gloo_process(monkeypatch):
    """The environment of one process, as torchrun would start it; any free port will do."""
    settings = {
        'RANK': 0,
        'LOCAL_RANK': 0,
        'WORLD_SIZE': 1,
        'MASTER_ADDR': 'localhost',
        'MASTER_PORT': 0,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture
def fails(capsys):
    """Run a tool's main and return its error message."""

    def run(main, *arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 1
        message = capsys.readouterr().err
        assert message.startswith('error: '), message
        return message

    return run
