"""Depthwise convolution together with the element-wise work around it, for deployed networks."""

from overlock_mm.ops.selection import load_backends

# On an H200, for maps of [64, 64, 56, 56] in bfloat16 and channels_last memory, 17 x 17 taps took
# 305 us with Triton, 724 with the CUDA kernels before these had its tiles, and 13211 with cuDNN;
# 3 x 3 taps took 27, 81 and 60.
load_backends(__name__, 'cpu', 'triton', 'cuda', 'reference')
