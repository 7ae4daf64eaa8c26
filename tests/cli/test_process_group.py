"""The tools leave the process group before their process ends."""

from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from overlock_mm.cli.arguments import leaves_process_group, load_run_config
from tests.conftest import DEMO
from tools import train as train_tool

pytestmark = [
    pytest.mark.usefixtures('one_gloo_process'),
    pytest.mark.skipif(
        torch.__version__ < (2, 7), reason='Before torch 2.7 the threads of gloo have no names.'
    ),
]


def gloo_threads():
    return {
        task.name
        for task in Path('/proc/self/task').iterdir()
        if 'gloo' in (task / 'comm').read_text()
    }


class _Runner:
    """Holds the wrapped model in a cycle, as mmengine's runner does through its loops."""

    def __init__(self):
        self.myself = self
        self.model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))


def start():
    load_run_config(train_tool.parse_args([DEMO, '--launcher', 'pytorch']))
    return _Runner()


@leaves_process_group()
def run(error=None):
    runner = start()
    runner.model(torch.ones(1, 2)).sum().backward()
    assert gloo_threads()
    if error is not None:
        raise error


def test_no_thread_of_gloo_is_left():
    before = gloo_threads()
    run()
    assert not distributed.is_initialized()
    assert gloo_threads() <= before


def test_a_readable_error_leaves_too():
    with pytest.raises(SystemExit):
        run(SystemExit(1))
    assert not distributed.is_initialized()


def test_an_error_does_not_wait_for_other_processes():
    with pytest.raises(RuntimeError, match='in the middle'):
        run(RuntimeError('in the middle'))
    assert distributed.is_initialized()
