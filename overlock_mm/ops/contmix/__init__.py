"""ContMix: dynamic convolution with global context (paper section 3.3)."""

from overlock_mm.ops.selection import load_backends

load_backends(__name__, 'cpu', 'cuda', 'triton', 'reference')
