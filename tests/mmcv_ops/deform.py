"""Deformable convolutions and attention, by tents around every pixel and autograd in float64."""

import torch

from tests.mmcv_ops.families import Family


def sample(feature, y, x):
    """Values of a (C, H, W) map at points, (C, *points), 0 outside.

    A pixel counts as much as a tent of width 2 around it is high at the point. The kernels take
    the derivative on the right of a pixel: a step of 1e-13 leads away from its ridge.
    """
    height, width = feature.shape[1:]
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    rows, columns = (
        (1 - (points[..., None] + 1e-13 - torch.arange(size)).abs()).clamp(min=0)
        for points, size in ((y, height), (x, width))
    )
    return torch.einsum('chw,...h,...w->c...', feature, rows, columns) * inside


def gradients(outputs, inputs, names):
    derivatives = torch.autograd.grad(outputs, [inputs[name] for name in names], inputs['grad'])
    return {f'by {name}': grad for name, grad in zip(names, derivatives, strict=True)}


def convolution(batch=2, kernel=(3, 3), size=(6, 7), groups=1, offset_groups=1, **more):
    """Offsets from a generator, in steps of 1/64, which float16 holds."""
    geometry = {
        'stride': more.get('stride', (1, 1)),
        'padding': more.get('padding', (1, 1)),
        'dilation': more.get('dilation', (1, 1)),
        'groups': groups,
        'offset_groups': offset_groups,
    }
    reached = zip(
        size, kernel, geometry['stride'], geometry['padding'], geometry['dilation'], strict=True
    )
    out = [
        (n + 2 * pad - dilation * (k - 1) - 1) // step + 1 for n, k, step, pad, dilation in reached
    ]
    points = offset_groups * kernel[0] * kernel[1]

    def make(generator):
        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        offset = (normal(batch, 2 * points, *out) * more.get('far', 1.0) * 64).round() / 64
        return {
            'input': normal(batch, 4, *size),
            'offset': offset + 1 / 128 if more.get('between', True) else offset.round(),
            'mask': normal(batch, points, *out).sigmoid(),
            'weight': normal(6, 4 // groups, *kernel),
            'bias': normal(6),
            'grad': normal(batch, 6, *out),
            'geometry': geometry,
        }

    return make


CONVOLUTIONS = {
    'random': convolution(),
    'groups': convolution(groups=2, offset_groups=2),
    'strides': convolution(stride=(2, 1), padding=(0, 2), dilation=(1, 2), size=(7, 9)),
    'one pixel': convolution(batch=1, kernel=(1, 1), padding=(0, 0)),
    'far outside': convolution(far=6.0),
    'no offset': convolution(far=0.0, between=False),
    'whole offsets': convolution(far=2.0, between=False),
}


def define_convolution(modulated):
    names = ['input', 'offset', 'weight', *(['mask', 'bias'] if modulated else [])]

    def define(inputs):
        tensors = {name: inputs[name].requires_grad_() for name in names}
        geometry, weight = inputs['geometry'], inputs['weight']
        kernel, groups = weight.shape[2:], geometry['offset_groups']
        out = inputs['offset'].shape[2:]
        grids = []
        for axis in (0, 1):
            tap = torch.arange(kernel[axis], dtype=torch.float64) * geometry['dilation'][axis]
            place = torch.arange(out[axis], dtype=torch.float64) * geometry['stride'][axis]
            grids.append(tap[:, None] + place - geometry['padding'][axis])
        y = grids[0][:, None, :, None].expand(*kernel, *out)
        x = grids[1][None, :, None, :].expand(*kernel, *out)
        output = []
        for feature, offset, mask in zip(
            inputs['input'], inputs['offset'], inputs['mask'], strict=True
        ):
            shift = offset.view(groups, *kernel, 2, *out)
            columns = torch.cat(
                [
                    sample(part, y + shift[index, :, :, 0], x + shift[index, :, :, 1])
                    * (mask.view(groups, *kernel, *out)[index] if modulated else 1)
                    for index, part in enumerate(feature.chunk(groups))
                ]
            )
            parts = zip(
                columns.chunk(geometry['groups']), weight.chunk(geometry['groups']), strict=True
            )
            output.append(
                torch.cat([torch.einsum('cijhw,ocij->ohw', column, part) for column, part in parts])
            )
        result = torch.stack(output)
        if modulated:
            result = result + inputs['bias'][:, None, None]
        return {'output': result, **gradients(result, tensors | {'grad': inputs['grad']}, names)}

    return define


def geometry_of(inputs, modulated):
    kernel, geometry = inputs['weight'].shape[2:], inputs['geometry']
    pairs = {
        ('kernel_', 'k'): kernel,
        ('stride_', 'd'): geometry['stride'],
        ('pad_', 'pad'): geometry['padding'],
        ('dilation_', 'dilation'): geometry['dilation'],
    }
    named = {'group': geometry['groups'], 'deformable_group': geometry['offset_groups']}
    for (snake, camel), (height, width) in pairs.items():
        prefix, sides = (snake, 'hw') if modulated else (camel, 'HW')
        named |= {prefix + sides[0]: height, prefix + sides[1]: width}
    return named


def call_convolution(ext, inputs):
    feature, offset, weight = inputs['input'], inputs['offset'], inputs['weight']
    output = torch.full_like(inputs['grad'], torch.nan)
    settings = geometry_of(inputs, modulated=False) | {'im2col_step': len(feature)}
    scratch, ones = feature.new_empty(0), feature.new_empty(0)
    ext.deform_conv_forward(feature, weight, offset, output, scratch, ones, **settings)
    by_input, by_offset, by_weight = map(torch.zeros_like, (feature, offset, weight))
    ext.deform_conv_backward_input(
        feature, offset, inputs['grad'], by_input, by_offset, weight, scratch, **settings
    )
    ext.deform_conv_backward_parameters(
        feature, offset, inputs['grad'], by_weight, scratch, ones, scale=1, **settings
    )
    return {
        'output': output,
        'by input': by_input,
        'by offset': by_offset,
        'by weight': by_weight,
    }


def call_modulated(ext, inputs):
    names = ('input', 'weight', 'bias', 'offset', 'mask')
    feature, weight, bias, offset, mask = (inputs[name] for name in names)
    output = torch.full_like(inputs['grad'], torch.nan)
    settings = geometry_of(inputs, modulated=True) | {'with_bias': True}
    ones, columns = feature.new_empty(0), feature.new_empty(0)
    ext.modulated_deform_conv_forward(
        feature, weight, bias, ones, offset, mask, output, columns, **settings
    )
    grads = {name: torch.zeros_like(inputs[name]) for name in names}
    ext.modulated_deform_conv_backward(
        *(feature, weight, bias, ones, offset, mask, columns),
        *grads.values(),
        inputs['grad'],
        **settings,
    )
    return {'output': output, **{f'by {name}': grad for name, grad in grads.items()}}


def attention(queries, sizes=((5, 7), (3, 2), (1, 1)), far=0.3):
    """Locations from a generator, some of them outside."""

    def make(generator):
        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        shapes = torch.tensor(sizes)
        areas = shapes.prod(1)
        return {
            'value': normal(2, int(areas.sum()), 2, 3),
            'shapes': shapes,
            'starts': areas.cumsum(0) - areas,
            'locations': 0.5 + far * normal(2, queries, 2, len(sizes), 4, 2),
            'weights': normal(2, queries, 2, len(sizes), 4).softmax(-1),
            'grad': normal(2, queries, 6),
        }

    return make


ATTENTIONS = {
    'random': attention(5),
    'one level': attention(3, ((4, 4),)),
    'far outside': attention(5, far=3.0),
    'one query': attention(1),
    'empty': attention(0),
}


def define_attention(inputs):
    names = ['value', 'locations', 'weights']
    value, locations, weights = (inputs[name].requires_grad_() for name in names)
    batch, queries, heads = weights.shape[:3]
    output = torch.zeros(batch, queries, heads, value.size(3), dtype=torch.float64)
    for level, ((height, width), start) in enumerate(
        zip(inputs['shapes'].tolist(), inputs['starts'].tolist(), strict=True)
    ):
        part = value[:, start : start + height * width].unflatten(1, (height, width))
        for image in range(batch):
            for head in range(heads):
                x, y = locations[image, :, head, level].unbind(-1)
                derivatives = sample(
                    part[image, :, :, head].permute(2, 0, 1), y * height - 0.5, x * width - 0.5
                )
                share = (derivatives * weights[image, :, head, level]).sum(-1)
                at = (torch.tensor(image), torch.arange(queries), torch.tensor(head))
                output = output.index_put(at, share.T, accumulate=True)
    output = output.flatten(2)
    return {'output': output, **gradients(output, inputs, names)}


def call_attention(ext, inputs):
    tensors = [inputs[name] for name in ('value', 'shapes', 'starts', 'locations', 'weights')]
    output = ext.ms_deform_attn_forward(*tensors, im2col_step=2)
    grads = {name: torch.zeros_like(inputs[name]) for name in ('value', 'locations', 'weights')}
    ext.ms_deform_attn_backward(*tensors, inputs['grad'], *grads.values(), im2col_step=2)
    return {'output': output, **{f'by {name}': grad for name, grad in grads.items()}}


ALL = (torch.float32, torch.float64, torch.float16)
FAMILIES = [
    Family('deform_conv', call_convolution, define_convolution(False), CONVOLUTIONS, ALL),
    Family('modulated_deform_conv', call_modulated, define_convolution(True), CONVOLUTIONS, ALL),
    # mmcv has no kernel of it for the CPU.
    Family('ms_deform_attn', call_attention, define_attention, ATTENTIONS),
]
