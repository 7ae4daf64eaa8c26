"""Adaptive average pooling as two matrix products.

ONNX has no operator for it, and its pooling with fixed windows fits only sizes that divide.
"""

import torch
from torch import Tensor


def averaging_matrix(size: int, output_size: int) -> Tensor:
    """[output_size, size]: row i averages floor(i * size / out) to ceil((i + 1) * size / out).

    Under tracing the sizes stay variable.
    """
    output = torch.arange(output_size)[:, None]
    start = output * size // output_size
    end = ((output + 1) * size + output_size - 1) // output_size
    place = torch.arange(size)
    return ((place >= start) & (place < end)).float() / (end - start).float()


def adaptive_avg_pool2d(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, C, H, W] to [B, C, h, w] with the averaging matrices [h, H] and [w, W]."""
    return rows @ (x @ columns.t())
