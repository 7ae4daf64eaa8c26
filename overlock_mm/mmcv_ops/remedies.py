"""Remedies for a missing operator: a compiled mmcv, or an alternative."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

#: Distributions of mmcv whose operators are compiled, unless MMCV_WITH_OPS=0 was set.
COMPILED = ('onedl-mmcv', 'mmcv')
#: The one that never has them.
LITE = 'mmcv-lite'
#: What mmcv's build asks the compiler for.
MMCV_CPP = 17

#: Prefix of an operator's name -> its alternative.
ALTERNATIVES = {
    'prroi_pool': "RoIAlign (`roi_layer=dict(type='RoIAlign', ...)`) in place of PrRoIPool",
    'bias_act': '`bias_act(..., use_custom_op=False)`, which is PyTorch code',
    'filtered_lrelu': '`filtered_lrelu(..., use_custom_op=False)`, which is PyTorch code',
    'upfirdn2d': '`upfirdn2d(..., use_custom_op=False)`, which is PyTorch code',
    'fused_bias_leakyrelu': 'tensors on the CPU, for which mmcv has PyTorch code',
}


def about(name: str) -> str:
    """Return both remedies for an operator that the stand-in lacks."""
    instead = (text for start, text in ALTERNATIVES.items() if name.startswith(start))
    other = next(instead, 'a model without it; `python -m overlock_mm.doctor` lists what works')
    return f'Remedies: {compile_mmcv()}. Or use {other}.'


def compile_mmcv() -> str:
    """Return how to get a compiled mmcv of the distribution that is installed."""
    if needed := too_new_for_mmcv():
        return f'`make env MMCV=compiled` in the repository of overlock_mm compiles mmcv. {needed}'
    return f'compile mmcv by {install(*_distribution(), operators=True)}'


def do_without() -> str:
    """Return how to replace the installed mmcv by one without compiled operators."""
    return f'{install(*_distribution(), operators=False)}, to use the operators of overlock_mm'


def _distribution() -> tuple[str, str | None]:
    """Return name and version of the installed mmcv, or the name of the maintained one."""
    for name in (*COMPILED, LITE):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return COMPILED[0], None


def install(name: str, version: str | None, operators: bool) -> str:
    """Return the command that installs mmcv again, with or without compiled operators."""
    first = f'pip uninstall -y {LITE}; ' if name == LITE else ''
    package = 'mmcv' if name == LITE else name
    if version is not None:
        package += f'=={version}'
    return (
        f'`{first}MMCV_WITH_OPS={operators:d} pip install --force-reinstall --no-deps '
        f'--no-build-isolation --no-cache-dir {package}`'
    )


def torchvision_for(torch_version: str) -> str:
    """Return the command that installs the torchvision made for this torch.

    Args:
        torch_version: That of the distribution, such as '2.11.0' or '2.6.0+cpu'. From torch 2.0
            and torchvision 0.15 on, the minor versions of both increase together; torchvision 0.29
            and newer run on every torch from 2.14 on.
    """
    minor = int(torch_version.split('.')[1])
    version = f'==0.{minor + 15}.*' if minor < 14 else '>=0.29'
    command = f'pip install --force-reinstall --no-deps "torchvision{version}"'
    if '+' in torch_version:
        command += f', with the --index-url that torch {torch_version} came from'
    return command


def too_new_for_mmcv() -> str:
    """Return why mmcv's own build cannot succeed with the installed torch; empty if it can."""
    needed = cpp_of_torch()
    if needed <= MMCV_CPP:
        return ''
    return (
        f"mmcv's own build, which `pip install` runs, asks the compiler for C++{MMCV_CPP}; the "
        'headers of this torch stop it with '
        f'"#error C++{needed} or later compatible compiler is required"'
    )


def cpp_of_torch() -> int:
    """Return the C++ standard that torch's headers demand, or 0 without them."""
    spec = importlib.util.find_spec('torch')
    if spec is None or spec.origin is None:
        return 0
    header = Path(spec.origin).parent / 'include' / 'ATen' / 'ATen.h'
    text = header.read_text(encoding='utf-8') if header.exists() else ''
    match = re.search(r'#error C\+\+(\d+) or later', text)
    return int(match[1]) if match else 0
