"""What the tests of the network share."""

import torch
from torch import nn

#: A network with every kind of block, small enough for a test.
TINY = dict(channels=(16, 32, 64, 64), depths=(1, 1, 2, 1, 2, 2), groups=(2, 2))


def randomize_norms(module: nn.Module) -> None:
    """Give batch norms statistics and weights that folding must not ignore."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.running_mean, std=0.5)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.normal_(m.bias, std=0.5)


def randomize_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    """Take every parameter away from its initial value, so that none hides an error."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    randomize_norms(module)
    return module
