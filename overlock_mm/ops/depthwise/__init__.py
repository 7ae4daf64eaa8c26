"""Depthwise convolution together with the element-wise work around it, for deployed networks."""

from overlock_mm.ops.selection import load_backends

load_backends(__name__, 'cpu', 'triton', 'cuda', 'reference')
