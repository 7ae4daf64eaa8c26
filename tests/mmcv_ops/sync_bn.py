"""The steps of synchronized batch norm of one process, by PyTorch's batch norm and autograd."""

import torch
import torch.nn.functional as F

from tests.mmcv_ops.families import Family

EPS, MOMENTUM = 1e-5, 0.1


def maps(number, pixels):
    def make(generator):
        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        return {
            'input': normal(number, 3, pixels) * 2 + 1,
            'weight': normal(3),
            'bias': normal(3),
            'mean': normal(3),
            'var': normal(3).exp(),
            'grad': normal(number, 3, pixels),
        }

    return make


CASES = {'random': maps(2, 12), 'vectors': maps(5, 1)}


def define(inputs):
    names = ['input', 'weight', 'bias']
    feature, weight, bias = (inputs[name].requires_grad_() for name in names)
    mean, var = inputs['mean'].clone(), inputs['var'].clone()
    output = F.batch_norm(feature, mean, var, weight, bias, True, MOMENTUM, EPS)
    grads = torch.autograd.grad(output, [feature, weight, bias], inputs['grad'])
    by = {f'by {name}': grad for name, grad in zip(names, grads, strict=True)}
    return {'output': output, 'mean': mean, 'var': var, **by}


def call(ext, inputs):
    feature, grad = inputs['input'], inputs['grad']
    dtype = torch.promote_types(feature.dtype, torch.float32)
    kept = {name: inputs[name].to(dtype, copy=True) for name in ('weight', 'bias', 'mean', 'var')}
    mean, var, std = (torch.zeros_like(kept['mean']) for _ in range(3))
    norm, output = torch.zeros_like(feature, dtype=dtype), torch.zeros_like(feature)
    ext.sync_bn_forward_mean(feature, mean)
    ext.sync_bn_forward_var(feature, mean, var)
    ext.sync_bn_forward_output(
        *(feature, mean, var, *kept.values(), norm, std, output),
        eps=EPS,
        momentum=MOMENTUM,
        group_size=1,
    )
    by_weight, by_bias = torch.zeros_like(std), torch.zeros_like(std)
    by_input = torch.zeros_like(feature)
    ext.sync_bn_backward_param(grad, norm, by_weight, by_bias)
    ext.sync_bn_backward_data(grad, kept['weight'], by_weight, by_bias, norm, std, by_input)
    return {
        'output': output,
        'mean': kept['mean'],
        'var': kept['var'],
        'by input': by_input,
        'by weight': by_weight,
        'by bias': by_bias,
    }


FAMILIES = [Family('sync_bn', call, define, CASES)]
