"""Options and set-up that ``tools/train.py`` and ``tools/test.py`` share."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import distributed, nn

from overlock_mm.checkpoint import SAFE_GLOBALS, read_everywhere
from overlock_mm.doctor import STACK
from overlock_mm.utils.config import load_config

_TRACEBACK = 'OVERLOCK_TRACEBACK'
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, ConfigParsingError)


class PathAwareAction(DictAction):
    """mmengine's action, except that an existing path may contain blanks and commas."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Parse ``KEY=VALUE`` pairs."""
        pairs = [value.partition('=') for value in values]
        paths = {key: value for key, _, value in pairs if os.path.exists(value)}
        rest = [key + sign + value for key, sign, value in pairs if key not in paths]
        super().__call__(parser, namespace, rest, option_string)
        getattr(namespace, self.dest).update(paths)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that change a config."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs, checkpoints and results; default: the `work_dir` of the config, '
        'else work_dirs/NAME_OF_THE_CONFIG',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=PathAwareAction,
        metavar='KEY=VALUE',
        help='change settings of the config, for example data_root=/data/coco '
        'train_dataloader.batch_size=4',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every run takes."""
    add_config_arguments(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='what started the processes of a distributed run (pytorch: torchrun)',
    )
    # torch.distributed.launch passes it; torchrun sets the environment variable.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def load_run_config(args: argparse.Namespace) -> Config:
    """Return the config of a run, with the common options applied.

    Raises:
        FileNotFoundError: There is no such config.
        ImportError: A package that it needs is missing or broken, or ``tensorboard`` is on without
            its package.
        ValueError: An option does not fit the config or the machine.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        cfg = load_config(args.config, args.cfg_options)
        importlib.import_module(cfg.get('default_scope') or 'mmengine')
    # Packages of the stack check each other's versions with bare asserts.
    except (ImportError, AssertionError) as error:
        raise ImportError(_reason_of_failed_import(args.config, error)) from error
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    cfg.launcher = args.launcher
    if cfg.get('tensorboard'):
        _enable_tensorboard(cfg)
    if args.launcher != 'none' and not torch.cuda.is_available():
        _use_gloo(cfg)
    return cfg


def load_tensors_only() -> None:
    """Prevent checkpoints from running code in this process, whichever library reads them.

    mmengine reads checkpoints with ``torch.load`` and, in some versions, falls back to unpickling
    anything when the safe way fails. This makes the safe way the only one, and lets it accept what
    mmengine's own training checkpoints contain. Checkpoints are read in one way only, so what a
    tool has checked is what the libraries load (:func:`overlock_mm.checkpoint.read_everywhere`).
    """
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    read_everywhere()


@contextmanager
def readable_errors(kinds: tuple[type[Exception], ...] = _USER_ERRORS) -> Iterator[None]:
    """Report a user's error as a message without a traceback, and exit with status 1.

    Args:
        kinds: What counts as such. The default is for preparation; in the run itself, what is
            not known for a mistake deserves its traceback.
    """
    try:
        yield
    except kinds as error:
        if os.environ.get(_TRACEBACK):
            raise
        # The str() of a KeyError is the repr of its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(
            f'error: {message}\n({_TRACEBACK}=1 shows where it was raised)',
            file=sys.stderr,
        )
        raise SystemExit(1) from None


@contextmanager
def leaves_process_group() -> Iterator[None]:
    """Decorate a tool's ``main`` with it: a distributed run leaves its process group at the end.

    gloo's threads end with the last reference to the group. Those that outlive the interpreter
    abort the process, after all work is done, when they let go of a tensor too late. Of a
    function's locals nothing is left when it has returned but cycles, such as a runner and its
    hooks.

    An error during the run leaves the group as it is: operations that wait for other processes may
    be under way, and to leave would be to wait for them. The launcher ends those processes.
    """
    try:
        yield
    except SystemExit:
        _leave_process_group()
        raise
    _leave_process_group()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model below the wrappers of distributed runs and of test-time augmentation."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def _reason_of_failed_import(config: str, error: BaseException) -> str:
    # mmengine puts an error without the reason in front of one with it.
    while error.__context__ is not None and not getattr(error, 'name', None):
        error = error.__context__
    package = (getattr(error, 'name', None) or '').partition('.')[0]
    if isinstance(error, ModuleNotFoundError) and package in STACK:
        original, maintained = STACK[package]
        return (
            f'{config} needs {package}, which is not installed: pip install {maintained} '
            f'(maintained) or {original} (original), like the rest of your stack.'
        )
    return (
        f'{config} needs a package that cannot be imported: {error}. '
        'python -m overlock_mm.doctor says what to do.'
    )


def _enable_tensorboard(cfg: Config) -> None:
    """Let the visualizer also write what TensorBoard reads."""
    if importlib.util.find_spec('tensorboard') is None:
        raise ModuleNotFoundError(
            '`tensorboard = True` needs a package that is not installed: pip install tensorboard. '
            'Without it, tools/analysis_tools/analyze_logs.py draws the curves.'
        )
    backends = cfg.visualizer.vis_backends
    if all(backend.type != 'TensorboardVisBackend' for backend in backends):
        backends.append(dict(type='TensorboardVisBackend'))


def _use_gloo(cfg: Config) -> None:
    """Prepare a distributed run on CPUs, where mmengine takes NCCL and a GPU for granted."""
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs a GPU, and none is visible. On CPUs start the '
            'processes with torchrun and use --launcher pytorch.'
        )
    if 'RANK' not in os.environ:
        raise ValueError(
            '--launcher pytorch expects the environment of torchrun. Start with '
            'torchrun --nproc-per-node N tools/train.py ... --launcher pytorch.'
        )
    # mmengine does not touch an existing process group.
    distributed.init_process_group('gloo')
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(type='MMDistributedDataParallel')
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _leave_process_group() -> None:
    if distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()
