"""Bytes that a network keeps for its backward pass."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from overlock_mm.models.overlock import image_channels


@dataclass(frozen=True)
class ActivationMemory:
    """What a forward pass in training leaves in memory until the backward pass.

    Args:
        by_module: Bytes by the class name of the module that kept them first, largest first.
    """

    by_module: dict[str, int]

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.by_module.values())


def measure_activation_memory(
    module: nn.Module,
    forward: Callable[[nn.Module, Tensor], Any],
    shape: tuple[int, int],
    batch_size: int = 1,
) -> ActivationMemory:
    """Count bytes on a copy of the module in training mode on torch's meta device.

    Every storage counts once and in full, however many operations keep it or a view of it.
    Parameters and buffers do not count, as they stay in memory anyway; the image does. Bytes are
    those of the module's own dtype, without autocast.

    Args:
        module: Counted as it is, except that it is put into training mode.
        forward: Calls the copy with images [batch_size, C, H, W], of as many channels as it takes.
        shape: H and W.
        batch_size: Number of images; the bytes are those of all.

    Example:
        >>> from overlock_mm import OverLoCK
        >>> kept = measure_activation_memory(OverLoCK('xt'), lambda net, x: net(x), (224, 224))
        >>> kept.total < 0.1e9
        True
    """
    copy = deepcopy(module).to('meta').train()
    dtype = next((p.dtype for p in copy.parameters()), torch.get_default_dtype())
    channels = image_channels(module)
    images = torch.empty(batch_size, channels, *shape, device='meta', dtype=dtype)
    storages = {t.untyped_storage()._cdata for t in (*copy.parameters(), *copy.buffers())}
    by_module: Counter[str] = Counter()
    alive = []  # a storage that were freed could hand its address to the next

    with _running_modules(copy) as running:

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                storages.add(storage._cdata)
                alive.append(storage)
                by_module[running[-1]] += storage.nbytes()
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
            forward(copy, images)
    return ActivationMemory(dict(by_module.most_common()))


@contextmanager
def _running_modules(root: nn.Module) -> Iterator[list[str]]:
    """Class names of the modules whose forward is running, the innermost last.

    torch's own layers are left out: whose batch norm it is says more than that it is one.
    """
    running = [type(root).__name__]
    handles = []
    for module in root.modules():
        if type(module).__module__.startswith('torch.nn.'):
            continue
        handles += [
            module.register_forward_pre_hook(lambda m, _: running.append(type(m).__name__)),
            module.register_forward_hook(lambda *_: running.pop() and None, always_call=True),
        ]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
