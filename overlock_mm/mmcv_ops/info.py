"""What ``mmcv.utils.collect_env`` reports. It uses no operator and logs nothing."""

from overlock_mm.mmcv_ops.registry import OPERATORS


def get_compiler_version() -> str:
    """Return a text that stands for the C++ compiler of the extension."""
    return 'none (operators by overlock_mm)'


def get_compiling_cuda_version() -> str:
    """Return what mmcv says where its extension has no CUDA code."""
    return 'not available'


for _function in (get_compiler_version, get_compiling_cuda_version):
    OPERATORS[_function.__name__] = _function
