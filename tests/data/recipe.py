"""Deterministic weights and inputs behind the golden values in this folder.

Every tensor of an official OverLoCK state dict is drawn from its own NumPy
``RandomState`` (a frozen, version-stable generator) seeded by the CRC-32 of
its official name, so that anyone can rebuild the same network without a
checkpoint file.
"""

import zlib

import numpy as np


def _normal(name, shape):
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    return np.random.RandomState(seed).standard_normal(shape)


def tensor(name, shape):
    """Value of the official tensor ``name`` as a float64 array of ``shape``."""
    leaf = name.rsplit('.', 1)[-1]
    owner = name.rsplit('.', 2)[-2] if name.count('.') else ''
    if leaf == 'num_batches_tracked':
        return np.zeros(shape)
    n = _normal(name, shape)
    if leaf == 'running_var':
        return np.exp(0.3 * n)
    if leaf == 'running_mean':
        return 0.1 * n
    if leaf in ('rpb1', 'rpb2'):
        return 0.5 * n
    if leaf in ('gamma', 'beta'):
        return 0.2 * n
    if leaf == 'weight':
        if owner in ('ls', 'ls1', 'ls2', 'x_scale', 'h_scale') or name == 'h_proj.1.weight':
            return 0.6 + 0.1 * n
        if len(shape) == 1:
            return 1.0 + 0.1 * n
        fan_in = int(np.prod(shape[1:]))
        gain = 3.0 if owner == 'weight_proj' else 1.0
        return gain * n / np.sqrt(fan_in)
    return 0.1 * n


def state_dict(shapes):
    """Map ``{official name: shape}`` to ``{official name: float64 array}``."""
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}


def image(batch, height, width):
    """Input images, float64 array of shape (batch, 3, height, width)."""
    return _normal(f'image-{batch}x{height}x{width}', (batch, 3, height, width))


def cotangent(index, shape):
    """Fixed random weights of output ``index`` in the scalar loss sum(out * w)."""
    return _normal(f'cotangent-{index}', shape) / np.sqrt(np.prod(shape))


def sample_indices(size, count=256):
    """Flat positions at which the golden files keep a tensor of ``size`` elements."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))
