"""What is installed, what of it works, and what to do about the rest.

python -m overlock_mm.doctor

Ends with status 1 if it found a problem. With ``--tune`` it chooses the backends of the operators
by measurement instead: see :mod:`overlock_mm.tuning`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlock_mm.mmcv_ops.remedies import LITE, compile_mmcv, do_without
from overlock_mm.mmcv_ops.report import operator_lines, operator_problems

#: Import name -> its original and its maintained distribution.
STACK = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
#: What each part of the stack is for, where it may be missing.
OPTIONAL = {
    'mmcv': 'detection and segmentation',
    'mmdet': 'detection',
    'mmseg': 'segmentation',
    'mmpretrain': 'classification',
}
#: Title -> one of the operators that share their backends.
OPERATORS = {
    'ContMix': 'contmix',
    'depthwise convolution': 'depthwise_conv2d',
    '1 x 1 convolution in fused form': 'pointwise_conv2d',
}
OTHERS = ('torch', 'torchvision', 'triton', 'numpy', 'setuptools', 'faster-coco-eval')
OPENCVS = (
    'opencv-python',
    'opencv-python-headless',
    'opencv-contrib-python',
    'opencv-contrib-python-headless',
)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do about it."""

    what: str
    remedy: str


def installed_versions() -> dict[str, str]:
    """Versions of the distributions that matter here and are installed."""
    names = [name for pair in STACK.values() for name in pair]
    versions = {}
    for name in ('overlock_mm', *names, LITE, *OTHERS, *OPENCVS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def stack_problems(versions: Mapping[str, str]) -> list[Problem]:
    """Packages that are there twice, of two generations, or missing.

    Args:
        versions: Distribution -> version, as :func:`installed_versions` gives them.
    """
    problems = []
    for module, (original, maintained) in STACK.items():
        if original in versions and maintained in versions:
            problems.append(
                Problem(
                    f'{original} and {maintained} are both installed and write over each other.',
                    f'pip uninstall {original} {maintained}, then install one of them again.',
                )
            )
        lite = module == 'mmcv' and LITE in versions
        if original not in versions and maintained not in versions and not lite:
            need = f'needed for {OPTIONAL[module]}' if module in OPTIONAL else 'always needed'
            pure = LITE if module == 'mmcv' else original
            problems.append(
                Problem(
                    f'{module} is not installed; it is {need}.',
                    f'pip install {maintained} (maintained) or {pure} (original), like the '
                    'rest of the stack.',
                )
            )
    originals = [pair[0] for pair in STACK.values() if pair[0] in versions]
    maintaineds = [pair[1] for pair in STACK.values() if pair[1] in versions]
    if originals and maintaineds:
        problems.append(
            Problem(
                f'The stack is mixed: {", ".join(originals)} of the original distributions, '
                f'{", ".join(maintaineds)} of the maintained ones.',
                'Use one kind for all: uninstall those of the other and install their '
                'counterparts.',
            )
        )
    opencvs = [name for name in OPENCVS if name in versions]
    if len(opencvs) > 1:
        problems.append(
            Problem(
                f'{" and ".join(opencvs)} write over each other.',
                f'pip uninstall -y {" ".join(opencvs)}, then pip install opencv-python-headless.',
            )
        )
    if 'onedl-mmdetection' in versions and 'faster-coco-eval' not in versions:
        problems.append(
            Problem(
                'faster-coco-eval is missing, without which the COCO metric of onedl-mmdetection '
                'prints nothing.',
                'pip install faster-coco-eval',
            )
        )
    return problems


def import_problems() -> list[Problem]:
    """Installed packages that cannot be imported, compiled parts included."""
    remedies = {
        'torchvision': 'Install the torchvision that was made for this torch.',
        'mmcv._ext': f'{do_without()}; or, against this torch, {compile_mmcv()}.',
    }
    problems = []
    for module in ('torch', 'torchvision', *STACK, 'mmcv._ext'):
        package = module.partition('.')[0]
        if importlib.util.find_spec(package) is None:
            continue
        try:
            importlib.import_module(module)
        # Packages of the stack check each other's versions with bare asserts, and a binary that
        # was made for another torch fails with an OSError or a RuntimeError.
        except (ImportError, AssertionError, OSError, RuntimeError, AttributeError) as error:
            lines = str(error).strip().splitlines() or ['no reason given']
            problems.append(
                Problem(
                    f'{module} is installed but cannot be imported: {lines[0]}',
                    remedies.get(
                        module,
                        f'Install {package} again, in a version that fits the rest of the stack.',
                    ),
                )
            )
    return problems


def mmcv_problems(versions: Mapping[str, str]) -> list[Problem]:
    """Return what prevents the use of mmcv's operators, compiled or not.

    Args:
        versions: Distribution -> version, as :func:`installed_versions` gives them.
    """
    return [Problem(what, remedy) for what, remedy in operator_problems(versions)]


def config_problems() -> list[Problem]:
    """Return whether the configs came with the package."""
    from overlock_mm.configs import CONFIG_ROOT, list_configs

    if list_configs():
        return []
    return [
        Problem(
            f'There are no configs at {CONFIG_ROOT}.',
            'Install the package again; on a file system without links, install it as a wheel '
            'and not with pip install -e.',
        )
    ]


def backend_lines(operator: str) -> list[str]:
    """Return a line for each backend of an operator, with its reasons if it cannot run here."""
    from overlock_mm.ops import available_backends

    return [
        f'{name}: ' + ('; '.join(reasons) if reasons else 'works')
        for name, reasons in available_backends(operator).items()
    ]


def compiled_part() -> str:
    """Return whether the package's compiled operators are there, and the remedy if not."""
    from overlock_mm.ops import extension

    return extension.why_not_loaded() or 'works'


def device_line() -> str:
    """Return the GPUs that torch sees."""
    import torch

    if not torch.cuda.is_available():
        made_for = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU only'
        return f'none visible (torch is made for {made_for})'
    count = torch.cuda.device_count()
    names = ', '.join(torch.cuda.get_device_name(index) for index in range(count))
    return f'{names} (CUDA {torch.version.cuda})'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m overlock_mm.doctor',
        description='Report what is installed and what does not fit, with the remedy.',
    )
    parser.add_argument(
        '--tune',
        action='store_true',
        help='instead, measure the backends of the operators on this machine, and use the fastest '
        'that are right from now on',
    )
    tuning = parser.add_argument_group('what --tune measures')
    tuning.add_argument('--arch', default='t', choices=('xt', 't', 's', 'b'), help='the variant')
    tuning.add_argument(
        '--image-size', type=int, nargs=2, default=(224, 224), metavar=('HEIGHT', 'WIDTH')
    )
    tuning.add_argument('--batch-size', type=int, default=1)
    tuning.add_argument('--dtype', default='float32', choices=('float32', 'float16', 'bfloat16'))
    return parser.parse_args(argv)


def tune(args: argparse.Namespace) -> int:
    """Measure the backends on the GPU if there is one, or else on the CPU."""
    import torch
    from rich.console import Console

    from overlock_mm.tuning import tune

    device = torch.device('cuda', 0) if torch.cuda.is_available() else torch.device('cpu')
    dtype = getattr(torch, args.dtype)
    tune(args.arch, tuple(args.image_size), args.batch_size, dtype, device, Console())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if there is a problem."""
    args = parse_args(argv)
    if args.tune:
        return tune(args)
    versions = installed_versions()
    print(f'Python {platform.python_version()} on {platform.platform()}')
    for name, version in versions.items():
        print(f'  {name} {version}')
    problems = stack_problems(versions) + mmcv_problems(versions) + import_problems()
    if not any(problem.what.startswith('torch ') for problem in problems):
        problems += config_problems()
        print(f'GPU: {device_line()}')
        print(f'Compiled part: {compiled_part()}')
        if lines := operator_lines():
            print('Operators of mmcv: ' + '\n'.join(lines))
        for title, operator in OPERATORS.items():
            print(f'Backends of {title}, best first:')
            for line in backend_lines(operator):
                print(f'  {line}')
    for problem in problems:
        print(f'\nproblem: {problem.what}\n  remedy: {problem.remedy}')
    if not problems:
        print('\nNo problem found.')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
