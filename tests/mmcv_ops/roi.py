"""RoIAlign and RoIPool, by loops over bins and points."""

import math

import torch

from tests.mmcv_ops.families import Family

SIZE = (3, 4)  # rows and columns of bins


def rois_in(generator, number, height, width, images):
    """RoIs with corners in steps of 1/4, some of them partly outside."""
    corners = torch.rand(number, 4, generator=generator, dtype=torch.float64)
    low = corners[:, :2] * torch.tensor([width, height]) - 2
    high = low + corners[:, 2:] * torch.tensor([width, height])
    index = torch.randint(0, images, (number, 1), generator=generator).double()
    return torch.cat([index, (low * 4).round() / 4, (high * 4).round() / 4], 1)


def random_rois(number, **settings):
    def make(generator):
        # In steps of 1/64: float16 holds them, and few are equal.
        values = torch.randint(-128, 128, (2, 3, 9, 12), generator=generator).double() / 64
        scale = settings.get('scale', 0.5)
        return {
            'features': values,
            'rois': rois_in(generator, number, 9 / scale, 12 / scale, 2),
            'grad': torch.randn(number, 3, *SIZE, generator=generator, dtype=torch.float64),
            'ratio': settings.get('ratio', 0),
            'aligned': settings.get('aligned', True),
            'scale': scale,
        }

    return make


def with_rois(*rows, **settings):
    def make(generator):
        inputs = random_rois(len(rows), **settings)(generator)
        return inputs | {'rois': torch.tensor(rows, dtype=torch.float64)}

    return make


CASES = {
    'random': random_rois(12),
    'three points': random_rois(12, ratio=3),
    'row of -1': with_rois([0, 4, -1.5, 12, 4.5], ratio=2),
    'not aligned': random_rois(12, aligned=False),
    'whole scale': random_rois(8, scale=1.0),
    'empty': random_rois(0),
    'no area': with_rois([0, 4, 4, 4, 4], [1, 2, 2, 9, 2], [1, 2, 2, 2, 9]),
    'outside': with_rois([0, -30, -30, -20, -20], [1, 60, 60, 80, 90], [0, -9, -9, 90, 90]),
    'whole image': with_rois([0, 0, 0, 24, 18], [1, 0, 0, 24, 18], ratio=1),
}
LESS_THAN_NO_AREA = with_rois([0, 9, 9, 3, 3], [1, 9, 2, 3, 8])


def at(feature, y, x):
    """Value of a (H, W) map at a point, by the border rule of RoIAlign."""
    height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0 * feature[0, 0]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0.0
    top, left = (math.floor(v.item() if isinstance(v, torch.Tensor) else v) for v in (y, x))
    for row in (top, top + 1):
        for column in (left, left + 1):
            share = (1 - abs(y - row)) * (1 - abs(x - column))
            if share > 0:
                value = value + share * feature[row, column]
    return value


def define_align(mode):
    def define(inputs):
        features = inputs['features'].requires_grad_()
        pooled = []
        for image, *corners in inputs['rois'].tolist():
            shift = 0.5 if inputs['aligned'] else 0.0
            left, top, right, bottom = (corner * inputs['scale'] - shift for corner in corners)
            size = [bottom - top, right - left]
            if not inputs['aligned']:
                size = [max(side, 1.0) for side in size]
            bins = [side / number for side, number in zip(size, SIZE, strict=True)]
            points = [inputs['ratio'] or math.ceil(side) for side in bins]
            for feature in features[int(image)]:
                for row in range(SIZE[0]):
                    for column in range(SIZE[1]):
                        values = [
                            at(
                                feature,
                                top + (row + (i + 0.5) / points[0]) * bins[0],
                                left + (column + (j + 0.5) / points[1]) * bins[1],
                            )
                            for i in range(points[0])
                            for j in range(points[1])
                        ]
                        values = values or [features[0, 0, 0, 0] * 0]
                        # Python's max, unlike torch's, takes the first of equal ones.
                        pooled.append(sum(values) / len(values) if mode else max(values))
        output = torch.stack(pooled) if pooled else features.sum() * 0 * torch.zeros(0)
        output = output.view(len(inputs['rois']), features.size(1), *SIZE)
        (grad,) = torch.autograd.grad(output, features, inputs['grad'])
        return {'output': output, 'grad': grad}

    return define


def call_align(mode):
    def call(ext, inputs):
        output = torch.full_like(inputs['grad'], torch.nan)
        argmax = [torch.full_like(output, torch.nan) if mode == 0 else output.new_zeros(0)] * 2
        argmax = [tensor.clone() for tensor in argmax]
        grad = torch.zeros_like(inputs['features'])
        settings = {
            'aligned_height': SIZE[0],
            'aligned_width': SIZE[1],
            'spatial_scale': inputs['scale'],
            'sampling_ratio': inputs['ratio'],
            'pool_mode': mode,
            'aligned': inputs['aligned'],
        }
        ext.roi_align_forward(inputs['features'], inputs['rois'], output, *argmax, **settings)
        ext.roi_align_backward(inputs['grad'], inputs['rois'], *argmax, grad, **settings)
        return {'output': output, 'grad': grad}

    return call


def define_pool(inputs):
    features = inputs['features'].requires_grad_()
    height, width = features.shape[2:]
    pooled = []
    for image, left, top, right, bottom in inputs['rois'].tolist():
        scale = inputs['scale']
        sides = [((bottom + 1) - top) * scale / SIZE[0], ((right + 1) - left) * scale / SIZE[1]]
        for feature in features[int(image)]:
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    first = [math.floor(row * sides[0] + top * scale)]
                    first += [math.floor(column * sides[1] + left * scale)]
                    stop = [math.ceil((row + 1) * sides[0] + top * scale)]
                    stop += [math.ceil((column + 1) * sides[1] + left * scale)]
                    pixels = [
                        feature[y, x]
                        for y in range(max(first[0], 0), min(stop[0], height))
                        for x in range(max(first[1], 0), min(stop[1], width))
                    ]
                    empty = not pixels or min(sides) <= 0
                    pooled.append(0 * feature[0, 0] if empty else max(pixels))
    output = torch.stack(pooled) if pooled else features.sum() * 0 * torch.zeros(0)
    output = output.view(len(inputs['rois']), features.size(1), *SIZE)
    (grad,) = torch.autograd.grad(output, features, inputs['grad'])
    return {'output': output, 'grad': grad}


def call_pool(ext, inputs):
    output = torch.zeros_like(inputs['grad'])
    argmax = torch.zeros_like(output, dtype=torch.int32)
    grad = torch.zeros_like(inputs['features'])
    settings = {
        'pooled_height': SIZE[0],
        'pooled_width': SIZE[1],
        'spatial_scale': inputs['scale'],
    }
    ext.roi_pool_forward(inputs['features'], inputs['rois'], output, argmax, **settings)
    ext.roi_pool_backward(inputs['grad'], inputs['rois'], argmax, grad, **settings)
    return {'output': output, 'grad': grad}


def shifted(number, **settings):
    def make(generator):
        inputs = random_rois(number, **settings)(generator)
        offset = torch.randn(number, 2, *SIZE, generator=generator, dtype=torch.float64)
        return inputs | {'offset': offset if settings.get('shifts', True) else torch.zeros(0)}

    return make


DEFORM_CASES = {
    'random': shifted(3),
    'two points': shifted(3, ratio=2),
    'no offset': shifted(3, shifts=False),
    'empty': shifted(0),
}


def define_deform(inputs):
    features, offset = inputs['features'].requires_grad_(), inputs['offset'].requires_grad_()
    pooled = []
    for index, (image, *edges) in enumerate(inputs['rois'].tolist()):
        left, top, right, bottom = (edge * inputs['scale'] - 0.5 for edge in edges)
        bins = [(bottom - top) / SIZE[0], (right - left) / SIZE[1]]
        points = [inputs['ratio'] or math.ceil(side) for side in bins]
        for feature in features[int(image)]:
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    x, y = offset[index, :, row, column] * 0.1 if offset.numel() else (0, 0)
                    y, x = y * (bottom - top) + top, x * (right - left) + left
                    values = [
                        at(
                            feature,
                            y + (row + (i + 0.5) / points[0]) * bins[0],
                            x + (column + (j + 0.5) / points[1]) * bins[1],
                        )
                        for i in range(points[0])
                        for j in range(points[1])
                    ]
                    pooled.append(sum(values) / len(values) + 0 * features[0, 0, 0, 0])
    output = torch.stack(pooled) if pooled else features.sum() * 0 * torch.zeros(0)
    output = output.view(inputs['grad'].shape)
    grads = torch.autograd.grad(
        output, [features, offset], inputs['grad'], materialize_grads=True, allow_unused=True
    )
    return {'output': output, 'by input': grads[0], 'by offset': grads[1]}


def call_deform(ext, inputs):
    features, offset = inputs['features'], inputs['offset']
    output = torch.full_like(inputs['grad'], torch.nan)
    by_input, by_offset = torch.zeros_like(features), torch.zeros_like(offset)
    settings = {
        'pooled_height': SIZE[0],
        'pooled_width': SIZE[1],
        'spatial_scale': inputs['scale'],
        'sampling_ratio': inputs['ratio'],
        'gamma': 0.1,
    }
    ext.deform_roi_pool_forward(features, inputs['rois'], offset, output, **settings)
    ext.deform_roi_pool_backward(
        inputs['grad'], features, inputs['rois'], offset, by_input, by_offset, **settings
    )
    return {'output': output, 'by input': by_input, 'by offset': by_offset}


ALL = (torch.float32, torch.float64, torch.float16)
FAMILIES = [
    Family('roi_align, averages', call_align(1), define_align(1), CASES, ALL),
    Family(
        'roi_align, maxima',
        call_align(0),
        define_align(0),
        CASES,
        # In half precision they find other maxima.
        (torch.float32, torch.float64),
        {
            'no area': "mmcv's kernels give -10000 for a bin without a point",
            'row of -1': "mmcv's kernels take a row of -1 for a bin without a point",
        },
    ),
    Family(
        'roi_pool',
        call_pool,
        define_pool,
        CASES | {'less than no area': LESS_THAN_NO_AREA},
    ),
    Family(
        'deform_roi_pool',
        call_deform,
        define_deform,
        DEFORM_CASES,
        undefined=dict.fromkeys(
            ('random', 'two points'),
            "mmcv's kernels give points at the border a derivative by the offset",
        ),
    ),
]
