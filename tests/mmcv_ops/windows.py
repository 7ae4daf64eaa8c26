"""Operators with a window around every pixel: by unfolded windows, loops or whole convolutions."""

import torch
import torch.nn.functional as F

from tests.mmcv_ops.families import Family


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def upsampling(batch=2, kernel=3, groups=1, scale=2, size=(4, 5), channels=4):
    def make(generator):
        large = [side * scale for side in size]
        return {
            'features': normal(generator, batch, channels, *size),
            'masks': normal(generator, batch, groups * kernel**2, *large),
            'grad': normal(generator, batch, channels, *large),
            'settings': {'kernel_size': kernel, 'group_size': groups, 'scale_factor': scale},
        }

    return make


ENLARGED = {
    'random': upsampling(),
    'groups': upsampling(groups=2, kernel=5),
    'one size': upsampling(scale=1),
    'by three': upsampling(scale=3, kernel=1),
    'window beyond the map': upsampling(kernel=5, size=(1, 2)),
    'empty': upsampling(batch=0),
}


def define_carafe(inputs):
    features, masks = inputs['features'].requires_grad_(), inputs['masks'].requires_grad_()
    kernel, groups, scale = inputs['settings'].values()
    batch, channels, height, width = features.shape
    if batch:
        windows = F.unfold(features, kernel, padding=kernel // 2)
    else:  # which unfold refuses
        windows = features.sum() + torch.zeros(0, channels * kernel**2, height * width)
    windows = windows.reshape(batch, groups, channels // groups, kernel**2, height, width)
    windows = windows.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    output = (windows * masks.unflatten(1, (groups, 1, kernel**2))).sum(3).flatten(1, 2)
    grads = torch.autograd.grad(output, [features, masks], inputs['grad'])
    return {'output': output, 'by features': grads[0], 'by masks': grads[1]}


def call_carafe(ext, inputs):
    features, masks, settings = inputs['features'], inputs['masks'], inputs['settings']
    output = torch.full_like(inputs['grad'], torch.nan)
    rfeatures, rmasks = torch.zeros_like(features), torch.zeros_like(masks)
    scratch = [torch.zeros_like(output) for _ in range(3)]
    ext.carafe_forward(features, masks, rfeatures, scratch[0], rmasks, output, **settings)
    grads = torch.zeros_like(features), torch.zeros_like(masks)
    ext.carafe_backward(
        *(inputs['grad'], rfeatures, masks, *scratch[1:]),
        *(torch.zeros_like(features), rmasks, *grads),
        **settings,
    )
    return {'output': output, 'by features': grads[0], 'by masks': grads[1]}


def call_naive_carafe(ext, inputs):
    features, masks, settings = inputs['features'], inputs['masks'], inputs['settings']
    output = torch.full_like(inputs['grad'], torch.nan)
    ext.carafe_naive_forward(features, masks, output, **settings)
    grads = torch.zeros_like(features), torch.zeros_like(masks)
    ext.carafe_naive_backward(inputs['grad'], features, masks, *grads, **settings)
    return {'output': output, 'by features': grads[0], 'by masks': grads[1]}


def weights_by_distance(size, mask):
    return lambda generator: {
        'input': normal(generator, 2, mask[0] * mask[1], *size),
        'grad': normal(generator, 2, size[0] * size[1], *size),
        'mask': mask,
    }


DISTANCES = {
    'whole reach': weights_by_distance((3, 4), (5, 7)),
    'short reach': weights_by_distance((4, 3), (3, 3)),
    'even': weights_by_distance((3, 3), (4, 2)),
    'one pixel': weights_by_distance((1, 1), (3, 1)),
}


def define_psa(collect):
    def define(inputs):
        weights = inputs['input'].requires_grad_()
        (rows, columns), (height, width) = inputs['mask'], weights.shape[2:]
        output = torch.zeros_like(inputs['grad'])
        for y in range(height):
            for x in range(width):
                for row in range(rows):
                    for column in range(columns):
                        to_y, to_x = y + row - (rows - 1) // 2, x + column - (columns - 1) // 2
                        if 0 <= to_y < height and 0 <= to_x < width:
                            here, there = (y, x), (to_y, to_x)
                            channel, pixel = (there, here) if collect else (here, there)
                            place = torch.zeros_like(output[0])
                            place[channel[0] * width + channel[1], pixel[0], pixel[1]] = 1
                            value = weights[:, row * columns + column, y, x]
                            output = output + value[:, None, None, None] * place
        (grad,) = torch.autograd.grad(output, weights, inputs['grad'])
        return {'output': output, 'by input': grad}

    return define


def call_psa(collect):
    def call(ext, inputs):
        (rows, columns), weights = inputs['mask'], inputs['input']
        settings = {
            'psa_type': 0 if collect else 1,
            'num_': len(weights),
            'h_feature': weights.size(2),
            'w_feature': weights.size(3),
            'h_mask': rows,
            'w_mask': columns,
            'half_h_mask': (rows - 1) // 2,
            'half_w_mask': (columns - 1) // 2,
        }
        output, grad = torch.zeros_like(inputs['grad']), torch.zeros_like(weights)
        ext.psamask_forward(weights, output, **settings)
        ext.psamask_backward(inputs['grad'], grad, **settings)
        return {'output': output, 'by input': grad}

    return call


def chosen(share, kernel=(3, 3), padding=(1, 1)):
    return lambda generator: {
        'input': normal(generator, 1, 3, 5, 6),
        'chosen': torch.rand(5, 6, generator=generator) < share,
        'weight': normal(generator, 4, 3, *kernel),
        'padding': padding,
    }


CHOSEN = {
    'random': chosen(0.4),
    'all': chosen(1.0),
    'one row': chosen(0.4, (1, 5), (0, 2)),
}


def define_masked(inputs):
    whole = F.conv2d(inputs['input'], inputs['weight'], padding=inputs['padding'])
    return {'output': whole * inputs['chosen']}


def call_masked(ext, inputs):
    feature, weight, (pad_h, pad_w) = inputs['input'], inputs['weight'], inputs['padding']
    rows, columns = inputs['chosen'].nonzero().unbind(1)
    at = rows.contiguous(), columns.contiguous()
    output = feature.new_zeros(1, len(weight), *inputs['chosen'].shape)
    windows = feature.new_zeros(weight[0].numel(), len(rows))
    ext.masked_im2col_forward(
        feature,
        *at,
        windows,
        kernel_h=weight.size(2),
        kernel_w=weight.size(3),
        pad_h=pad_h,
        pad_w=pad_w,
    )
    ext.masked_col2im_forward(
        weight.flatten(1) @ windows,
        *at,
        output,
        height=output.size(2),
        width=output.size(3),
        channels=len(weight),
    )
    return {'output': output}


CPU = (torch.float32, torch.float64)
FAMILIES = [
    Family('carafe', call_carafe, define_carafe, ENLARGED),
    Family('carafe_naive', call_naive_carafe, define_carafe, {'groups': ENLARGED['groups']}),
    Family('psamask, collecting', call_psa(True), define_psa(True), DISTANCES, CPU),
    Family('psamask, distributing', call_psa(False), define_psa(False), DISTANCES, CPU),
    Family('masked convolution', call_masked, define_masked, CHOSEN),
]
