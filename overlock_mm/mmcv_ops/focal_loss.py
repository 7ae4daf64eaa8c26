"""Focal loss (Lin et al., ICCV 2017) of logits and of softmax probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from overlock_mm.mmcv_ops.registry import Family, widened

_SIGMOID = Family(
    ('SigmoidFocalLoss', 'sigmoid_focal_loss'),
    'torch',
    'Stays exact for large logits, where mmcv takes the logarithm of a probability rounded to 0.',
)
_SOFTMAX = Family(('SoftmaxFocalLoss', 'softmax_focal_loss'), 'torch')


@_SIGMOID.operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each logit.

    Args:
        input: (N, C), logits.
        target: (N,), classes, int64; no class of the C, C itself for one, is background.
        weight: (C,), factors by the target's class, or empty.
        output: (N, C), receives the loss.
        gamma: Exponent.
        alpha: Weight of foreground; background has ``1 - alpha``.
    """
    (logit,) = widened(input)
    probability = logit.sigmoid()
    foreground = -alpha * (1 - probability) ** gamma * F.logsigmoid(logit)
    background = -(1 - alpha) * probability**gamma * F.logsigmoid(-logit)
    loss = torch.where(_is_target(logit, target), foreground, background)
    output.copy_(loss * _class_weight(target, weight, logit)[:, None])


@_SIGMOID.operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of :func:`sigmoid_focal_loss_forward`, into ``grad_input`` of (N, C)."""
    (logit,) = widened(input)
    p, q = logit.sigmoid(), (-logit).sigmoid()
    foreground = -alpha * q**gamma * (q - gamma * p * F.logsigmoid(logit))
    background = -(1 - alpha) * p**gamma * (gamma * q * F.logsigmoid(-logit) - p)
    grad = torch.where(_is_target(logit, target), foreground, background)
    grad_input.copy_(grad * _class_weight(target, weight, logit)[:, None])


@_SOFTMAX.operator
def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each row.

    Args:
        softmax: (N, C), probabilities.
        target: (N,), classes, int64; those below 0 have no loss.
        weight: (C,), factors by the target's class, or empty.
        output: (N,), receives the loss.
        gamma: Exponent.
        alpha: Weight of all.
    """
    (softmax,) = widened(softmax)
    p = _of_target(softmax, target)
    loss = -alpha * (1 - p) ** gamma * _log(p) * _class_weight(target, weight, softmax)
    output.copy_(torch.where(target >= 0, loss, 0))


@_SOFTMAX.operator
def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of :func:`softmax_focal_loss_forward` by the logits below the softmax.

    Args:
        softmax: The argument of the forward operator.
        target: The argument of the forward operator.
        weight: The argument of the forward operator.
        buff: (N,), receives the derivative by the logarithm of the target's probability.
        grad_input: (N, C), receives the derivative.
        gamma: The argument of the forward operator.
        alpha: The argument of the forward operator.
    """
    (softmax,) = widened(softmax)
    p = _of_target(softmax, target)
    by_log = -((1 - p) ** gamma)
    if gamma:  # or else 0 * inf at a probability of 1
        by_log = by_log + gamma * (1 - p) ** (gamma - 1) * p * _log(p)
    by_log = alpha * by_log * _class_weight(target, weight, softmax)
    by_log = torch.where(target >= 0, by_log, 0)
    buff.copy_(by_log)
    grad_input.copy_(by_log[:, None] * (_is_target(softmax, target).to(softmax) - softmax))


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.size(1), device=target.device)


def _of_target(softmax: Tensor, target: Tensor) -> Tensor:
    return softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _class_weight(target: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """(N,), the factor of each target; 1 without weights and for targets that are no class."""
    if weight.numel() == 0:
        return like.new_ones(target.shape)
    inside = (target >= 0) & (target < weight.numel())
    factors = weight.to(like)[target.clamp(0, weight.numel() - 1)]
    return torch.where(inside, factors, 1)
