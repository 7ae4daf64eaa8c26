"""NMS, soft-NMS, nms_match, NMS of lanes and overlaps of boxes, by loops over pairs."""

import math

import torch

from tests.mmcv_ops.families import Family


def boxes(generator, number, size=64.0):
    """Boxes that overlap, with corners in steps of 1/8, so that float16 holds them."""
    corners = torch.rand(number, 4, generator=generator, dtype=torch.float64) * size / 2
    corners[:, 2:] += corners[:, :2] + 1
    return (corners * 8).round() / 8


def distinct_scores(generator, number):
    """Steps of 1/1024, which float16 holds, in random order."""
    return (torch.randperm(1000, generator=generator)[:number] + 1).double() / 1024


def random_boxes(number, offset=0, threshold=0.5):
    return lambda generator: {
        'boxes': boxes(generator, number),
        'scores': distinct_scores(generator, number),
        'threshold': threshold,
        'offset': offset,
    }


def tied(generator):
    scores = torch.randint(1, 4, (60,), generator=generator).double() / 4
    return {'boxes': boxes(generator, 60), 'scores': scores, 'threshold': 0.4, 'offset': 0}


def at_the_threshold(generator):
    """IoUs of exactly 3/5, which exceed neither 0.6 nor its nearest float32."""
    pair = [[0.0, 0, 4, 1], [1, 0, 5, 1]]
    corners = torch.tensor(pair + [[10, 0, 14, 1], [10, 0, 14, 2]], dtype=torch.float64)
    scores = torch.tensor([0.5, 0.25, 0.75, 0.125], dtype=torch.float64)
    return {'boxes': corners, 'scores': scores, 'threshold': 0.6, 'offset': 0}


def degenerate(generator):
    """No area, or less than none; twice in one place."""
    corners = [[5.0, 5, 5, 9], [5, 5, 5, 9], [8, 8, 3, 3], [0, 0, 9, 9], [1, 1, 1, 1], [0, 0, 9, 9]]
    return {
        'boxes': torch.tensor(corners, dtype=torch.float64),
        'scores': distinct_scores(generator, len(corners)),
        'threshold': 0.5,
        'offset': 0,
    }


CASES = {
    'random': random_boxes(100),
    'random, low threshold': random_boxes(100, threshold=0.1),
    'pixels': random_boxes(50, offset=1),
    'one': random_boxes(1),
    'empty': random_boxes(0),
    'tied': tied,
    'degenerate': degenerate,
    'at the threshold': at_the_threshold,
}
UNSTABLE = {'tied': "mmcv's sort is not stable, or its selection exchanges entries"}


def iou(one, other, offset):
    def area(x1, y1, x2, y2):
        return (x2 - x1 + offset) * (y2 - y1 + offset)

    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]) + offset)
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]) + offset)
    union = area(*one) + area(*other) - width * height
    return width * height / union if union else 0.0


def by_score(scores):
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def define_nms(inputs):
    corners, threshold = inputs['boxes'].tolist(), float(torch.tensor(inputs['threshold']))
    keep = []
    for index in by_score(inputs['scores'].tolist()):
        overlaps = [iou(corners[kept], corners[index], inputs['offset']) for kept in keep]
        if not any(overlap > threshold for overlap in overlaps):
            keep.append(index)
    return {'keep': torch.tensor(keep, dtype=torch.int64)}


def call_nms(ext, inputs):
    keep = ext.nms(
        inputs['boxes'],
        inputs['scores'],
        iou_threshold=inputs['threshold'],
        offset=inputs['offset'],
    )
    return {'keep': keep}


def define_soft_nms(method):
    def define(inputs):
        corners, left = inputs['boxes'].tolist(), dict(enumerate(inputs['scores'].tolist()))
        picked, scores = [], []
        while left:
            best = max(left, key=lambda index: (left[index], -index))
            picked.append(best)
            scores.append(left.pop(best))
            for index in list(left):
                overlap = iou(corners[best], corners[index], inputs['offset'])
                if method == 2:
                    left[index] *= math.exp(-(overlap**2) / 0.5)
                elif overlap >= inputs['threshold']:
                    left[index] *= 0 if method == 0 else 1 - overlap
                if left[index] < 0.05:
                    del left[index]
        dets = torch.cat(
            [inputs['boxes'][picked], torch.tensor(scores, dtype=torch.float64)[:, None]], 1
        )
        return {'keep': torch.tensor(picked, dtype=torch.int64), 'dets': dets.view(-1, 5)}

    return define


def call_soft_nms(method):
    def call(ext, inputs):
        corners, scores = inputs['boxes'].cpu(), inputs['scores'].cpu()
        dets = torch.full((len(corners), 5), torch.nan, dtype=corners.dtype)
        keep = ext.softnms(
            corners,
            scores,
            dets,
            iou_threshold=inputs['threshold'],
            sigma=0.5,
            min_score=0.05,
            method=method,
            offset=inputs['offset'],
        )
        return {'keep': keep, 'dets': dets[: len(keep)]}

    return call


def define_match(inputs):
    corners, left = inputs['boxes'].tolist(), by_score(inputs['scores'].tolist())
    groups = []
    while left:
        best, *left = left
        threshold = inputs['threshold']
        matched = [other for other in left if iou(corners[best], corners[other], 0) >= threshold]
        groups.append([best, *matched])
        left = [index for index in left if index not in matched]
    return {'groups': groups}


def call_match(ext, inputs):
    dets = torch.cat([inputs['boxes'], inputs['scores'][:, None]], 1).cpu()
    return {'groups': ext.nms_match(dets, iou_threshold=inputs['threshold'])}


def lanes(generator):
    """40 lanes on 12 rows: where they begin, their length, and positions from 0 to 100."""
    table = torch.rand(40, 5 + 12, generator=generator, dtype=torch.float64)
    table[:, 2] = torch.randint(0, 12, (40,), generator=generator) / 11
    table[:, 4] = torch.randint(0, 12, (40,), generator=generator)
    table[:, 5:] = (table[:, 5:6] * 100 + table[:, 5:] * 10).round()
    return {'lanes': table, 'scores': distinct_scores(generator, 40), 'threshold': 8.0}


def define_lane_nms(inputs):
    rows = inputs['lanes'].size(1) - 5
    lengths = [round(lane[4].item()) for lane in inputs['lanes']]
    starts = [math.floor(lane[2].item() * (rows - 1) + 0.5) for lane in inputs['lanes']]

    def near(one, other):
        shared = [
            5 + row
            for row in range(rows)
            if all(starts[lane] <= row < starts[lane] + lengths[lane] for lane in (one, other))
        ]
        if not shared:
            return False
        apart = [abs(inputs['lanes'][one, at] - inputs['lanes'][other, at]).item() for at in shared]
        return sum(apart) / len(apart) < inputs['threshold']

    keep, parent = [], [0] * len(lengths)
    for index in by_score(inputs['scores'].tolist()):
        if len(keep) == 15:
            break
        if not parent[index]:
            keep.append(index)
            parent[index] = len(keep)
            for other in by_score(inputs['scores'].tolist()):
                lower = inputs['scores'][other] < inputs['scores'][index]
                if lower and other not in keep and near(index, other):
                    parent[other] = len(keep)
    return {'keep': torch.tensor(keep), 'parent': torch.tensor(parent)}


def call_lane_nms(ext, inputs):
    keep, number, parent = ext.line_nms_forward(
        inputs['lanes'], inputs['scores'], inputs['threshold'], 15
    )
    return {'keep': keep[: int(number)], 'parent': parent}


def two_lists(first, second, mode, aligned, offset=0):
    return lambda generator: {
        'first': boxes(generator, first),
        'second': boxes(generator, second),
        'mode': mode,
        'aligned': aligned,
        'offset': offset,
    }


OVERLAPS = {
    'over union': two_lists(7, 9, 0, False),
    'over the first': two_lists(7, 9, 1, False),
    'row by row': two_lists(8, 8, 0, True),
    'row by row over the first': two_lists(8, 8, 1, True),
    'pixels': two_lists(7, 9, 0, False, offset=1),
    'degenerate': lambda generator: (
        two_lists(4, 4, 0, False)(generator)
        | {'first': degenerate(generator)['boxes'], 'second': degenerate(generator)['boxes']}
    ),
}


def define_overlaps(inputs):
    first, second, offset = inputs['first'].tolist(), inputs['second'].tolist(), inputs['offset']

    def overlap(one, other):
        sides = [
            max(0, min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + offset) for i in (0, 1)
        ]
        area, other_area = ((b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (one, other))
        inter = sides[0] * sides[1]
        base = area if inputs['mode'] else area + other_area - inter
        return inter / base if base else math.nan

    if inputs['aligned']:
        table = [overlap(*pair) for pair in zip(first, second, strict=True)]
    else:
        table = [[overlap(one, other) for other in second] for one in first]
    return numbers_and_nans(torch.tensor(table, dtype=torch.float64))


def call_overlaps(ext, inputs):
    first, second = inputs['first'], inputs['second']
    shape = (len(first),) if inputs['aligned'] else (len(first), len(second))
    table = first.new_zeros(shape)
    settings = {name: inputs[name] for name in ('mode', 'aligned', 'offset')}
    ext.bbox_overlaps(first, second, table, **settings)
    return numbers_and_nans(table)


def numbers_and_nans(table):
    return {'overlaps': table.nan_to_num(), 'nan': table.isnan()}


FLOAT = (torch.float32,)
FAMILIES = [
    Family('nms', call_nms, define_nms, CASES, FLOAT, UNSTABLE),
    *(
        Family(
            f'softnms by method {method}',
            call_soft_nms(method),
            define_soft_nms(method),
            CASES,
            FLOAT,
            UNSTABLE | {'degenerate': "mmcv's Gaussian of an IoU of 0/0 gives a score of NaN"},
        )
        for method in range(3)
    ),
    Family(
        'nms_match',
        call_match,
        define_match,
        # mmcv's Python function answers itself for no boxes.
        {name: case for name, case in CASES.items() if name not in ('empty', 'at the threshold')},
        FLOAT,
        UNSTABLE,
    ),
    Family(
        'line_nms',
        call_lane_nms,
        define_lane_nms,
        {'lanes': lanes},
        undefined={'lanes': "mmcv's kernel takes 77 columns and mixes sorted with unsorted lanes"},
    ),
    Family(
        'bbox_overlaps',
        call_overlaps,
        define_overlaps,
        OVERLAPS,
        (torch.float32, torch.float64),
    ),
]
