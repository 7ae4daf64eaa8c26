"""Which backends are chosen on a GPU."""

import torch

from overlock_mm.ops import available_backends
from overlock_mm.ops.contmix.backends import Call
from overlock_mm.ops.depthwise.backends import Call as DepthwiseCall
from tests.ops.gpu.helpers import ON_GPU

pytestmark = ON_GPU


def test_the_order_of_automatic_choice():
    device = torch.device('cuda', 0)
    contmix_call = Call('contmix', device, torch.bfloat16, 13, query_channels=16, regions=49)
    reasons = available_backends(contmix_call)
    assert reasons['triton'] == [] and next(n for n in reasons if not reasons[n]) == 'triton'
    reasons = available_backends(DepthwiseCall('depthwise_conv2d', device, torch.bfloat16))
    assert next(n for n in reasons if not reasons[n]) == 'triton'
