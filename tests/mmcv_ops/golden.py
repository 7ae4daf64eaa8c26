"""What mmcv's compiled operators once gave, for environments that have none.

Where they are compiled, `python -m tests.mmcv_ops.golden` writes the file again. Of long tensors it
keeps entries at equal distances.
"""

import functools
import gzip
import json
from pathlib import Path

import mmcv
import mmdet
import torch

from tests.mmcv_ops.families import compiled, operators_of
from tests.mmcv_ops.networks import NETWORKS, run
from tests.mmcv_ops.test_operators import COMPILED_CASES

PATH = Path(__file__).with_name('golden.json.gz')
ENTRIES = 48


def digest(tensors):
    """Sum of all inputs, by which a change of them is noticed."""
    values = (value for value in tensors.values() if isinstance(value, torch.Tensor))
    return sum(value.double().sum().item() for value in values)


def shorten(outputs):
    """JSON for outputs; entries of long tensors only."""
    return {
        name: thin(value).tolist() if isinstance(value, torch.Tensor) else value
        for name, value in outputs.items()
    }


def thin(tensor):
    flat = tensor.detach().cpu().flatten()
    return flat[:: -(-len(flat) // ENTRIES) or 1]


@functools.cache
def read():
    return json.loads(gzip.decompress(PATH.read_bytes()))


def losses_and_scores(outputs):
    """What does not depend on the order of predictions that are nearly equal."""
    wanted = ('loss', 'scores', 'logits')
    return {
        name: value
        for name, value in outputs.items()
        if any(word in name for word in wanted) and not name.startswith('by ')
    }


def main():
    versions = {'mmcv': mmcv.__version__, 'mmdet': mmdet.__version__, 'torch': torch.__version__}
    table = {'versions': versions}
    for family, case in COMPILED_CASES:
        inputs = family.inputs(case, torch.float32)
        outputs = family.call(compiled(), inputs)
        table[f'{family.name}: {case}'] = {'inputs': digest(inputs), 'outputs': shorten(outputs)}
    with operators_of(compiled()):
        for name, network in NETWORKS.items():
            table[name] = shorten(losses_and_scores(run(network)))
    text = json.dumps(table, separators=(',', ':')).encode()
    PATH.write_bytes(gzip.compress(text, mtime=0))


if __name__ == '__main__':
    main()
