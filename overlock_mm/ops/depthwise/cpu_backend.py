"""Backend 'cpu': fused C++ kernels of ``overlock_mm._C`` for float32.

Deterministic: results do not depend on the number of threads.
"""

from overlock_mm.ops.depthwise.backends import Call


def why_not(call: Call) -> list[str]:
    """All reasons why this backend cannot run a call."""
    return ['not yet']
