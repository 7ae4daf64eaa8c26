"""One training step on a fixed batch; writes the gradients. Started by test_data_parallel.py.

Under torchrun each process takes its part of the batch. Everything is in float64, and batch norms
use their running statistics, so the result does not depend on how the batch was divided.
"""

import os
import sys

import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from torch import distributed

from overlock_mm import OverLoCK

IMAGES = 4


class _Regressor(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = OverLoCK(
            arch=dict(channels=(16, 16, 32, 32), depths=(1, 1, 1, 1, 2, 1), groups=(2, 2)),
            norm_eval=True,
        )

    def forward(self, inputs, targets, mode='loss'):
        # A mean over images: equal parts of a batch average to the whole.
        outputs = self.backbone(inputs)
        return sum((x.mean(dim=(1, 2, 3)) - targets).square().mean() for x in outputs)


def main(path):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    inputs = torch.randn(IMAGES, 3, 64, 64, dtype=torch.float64)
    targets = torch.randn(IMAGES, dtype=torch.float64)
    model = _Regressor().double().train()
    rank = 0
    if 'RANK' in os.environ:
        distributed.init_process_group('gloo')
        rank = distributed.get_rank()
        inputs = inputs.chunk(distributed.get_world_size())[rank]
        targets = targets.chunk(distributed.get_world_size())[rank]
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    else:
        wrapped = model
    wrapped(inputs, targets, mode='loss').backward()
    if rank == 0:
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save({'gradients': gradients, 'images': len(inputs)}, path)
    if 'RANK' in os.environ:
        distributed.destroy_process_group()


if __name__ == '__main__':
    main(sys.argv[1])
