"""A GPU that is not there: tensors without values, on the device 'cuda'."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ['FakeTensorMode', 'OnTheCard']


class OnTheCard(TorchDispatchMode):
    """Refuses tensors elsewhere, and notes the operators of this package.

    Together with a ``FakeTensorMode``, which raises where a value is read, it finds what waits for
    the card, and what a CUDA graph could thus not capture.
    """

    def __init__(self):
        super().__init__()
        self.ours = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            assert not isinstance(x, torch.Tensor) or x.is_cuda, f'{func} on {x.device}'
        if func.namespace == 'overlock_mm':
            self.ours.add(func._opname)
        return result
