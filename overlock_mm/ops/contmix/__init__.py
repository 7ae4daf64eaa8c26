"""ContMix: dynamic convolution with global context (paper section 3.3)."""

from overlock_mm.ops.selection import load_backends

# On a GPU Triton comes first: it needs no compiler and compiles for every card.
load_backends(__name__, 'cpu', 'triton', 'cuda', 'reference')
