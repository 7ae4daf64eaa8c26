"""The explorer's page: what is in it, and that its JavaScript computes what Python computes."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from overlock_mm import ARCHS, OverLoCK
from overlock_mm.analysis import explorer, project_contmix
from overlock_mm.analysis.contmix_kernels import ContMixProjections, contmix_blocks
from overlock_mm.layers.contmix import KernelParameters
from overlock_mm.models import ContMix
from tests.models.helpers import TINY, randomize_parameters


@pytest.fixture(scope='module')
def projections():
    """14 x 15 tokens at stride 16 and 7 x 8 at stride 32, and kernels far from even."""
    model = randomize_parameters(OverLoCK(TINY)).eval()
    for module in contmix_blocks(model).values():
        nn.init.normal_(module.kernel_proj.weight, std=0.2)
        nn.init.normal_(module.rpb_large)
    torch.manual_seed(2)
    return project_contmix(model, torch.randn(3, 216, 230))


@pytest.fixture(scope='module')
def picture():
    return np.random.default_rng(0).integers(0, 255, (216, 230, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def page(picture, projections):
    page, _ = explorer.build_page(
        picture, projections, image_name='</script><b>&"street".jpg', subtitle='<i>a & b</i>'
    )
    return page


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.ids, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ('src', 'href') if name in attributes]
        self.ids += [attributes[name] for name in ('id',) if name in attributes]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_names_are_escaped(page):
    elements = Elements()
    elements.feed(page)
    assert '$' not in re.sub(r'<script>.*</script>', '', page, flags=re.S)  # every field is filled
    assert elements.addresses == ['data:,']  # nothing is loaded
    assert "default-src 'none'" in page
    assert 'b' not in elements.tags and 'i' in elements.tags
    assert elements.tags.count('script') == 2
    assert 'ContMix: </script><b>&"street".jpg' in elements.text
    assert '<i>a & b</i>' in elements.text
    assert len(elements.ids) == len(set(elements.ids))
    script = page[page.rindex('<script>') :]
    assert set(re.findall(r"element\('([a-z-]+)'\)", script)) <= set(elements.ids)


def test_what_the_page_holds(page, projections):
    data = data_of(page)
    assert [block['name'] for block in data['blocks']] == list(projections)
    assert data['image']['source'].startswith('data:image/jpeg;base64,')
    assert (data['image']['width'], data['image']['height']) == (230, 216)
    assert all(len(scale) == 17 for scale in data['colors'].values())


def test_digits_are_shown_as_far_as_they_are_sure(projections):
    for one in projections.values():
        packed = explorer.pack_block(one)
        assert packed.content['percentDecimals'] == explorer.PERCENT_DECIMALS == 2
        assert 0 < 100 * packed.weight_error <= 0.005
        assert 0 < packed.affinity_error <= 0.5 * 10.0 ** -packed.content['affinityDecimals']


def test_kernels_of_a_single_tap_are_shown_with_fewer_digits(projections):
    """Logits in the thousands: a ten-thousandth of them makes a large difference."""
    one = projections['focus3.0']
    packed = explorer.pack_block(replace(one, scale=1000 * one.scale))
    decimals = packed.content['percentDecimals']
    assert decimals < 2
    assert 100 * packed.weight_error <= 0.5 * 10.0**-decimals or decimals == 0


@pytest.mark.parametrize(
    ('value', 'shown'),
    [(0.0, '0'), (0.0021, '0.003'), (0.097, '0.10'), (2.4, '3'), (2e-5, '0.00002')],
)
def test_bounds_are_rounded_up(value, shown):
    assert explorer._rounded_up(value) == shown
    assert float(shown) >= value


def test_numbers_that_are_all_the_same():
    stored, decoded = explorer._packed(torch.full((2, 3), 0.1), 'focus3.0')
    assert torch.allclose(decoded, torch.full((2, 3), 0.1, dtype=torch.float64), atol=1e-8)
    assert np.frombuffer(base64.b64decode(stored['step']), '<f4').tolist() == [0, 0]


def test_numbers_that_are_not_finite(projections):
    one = projections['focus3.0']
    query = torch.full_like(one.query, float('nan'))
    with pytest.raises(ValueError, match='focus3.0 has queries, keys or parameters .*not finite'):
        explorer.pack_block(replace(one, query=query))


def projections_of(arch, block, stage, shape):
    """Random numbers in the sizes of a published variant, for an image of a shape."""
    stride, width = (16, 32)[stage], arch.channels[2 + stage]
    module = ContMix(
        width,
        arch.context_channels,
        width,
        arch.groups[stage],
        arch.kernel_sizes[2 + stage],
        arch.contmix_small_kernel,
        dict(type='BN'),
    )
    channels = width // 2 // module.groups
    return ContMixProjections(
        block,
        torch.randn(module.groups, channels, shape[0] // stride, shape[1] // stride),
        torch.randn(module.groups, channels, 49),
        [
            KernelParameters(kernel.size, *map(torch.randn_like, kernel[1:]))
            for kernel in module.kernel_parameters()
        ],
        module.scale,
        shape,
        False,
    )


@pytest.mark.parametrize('variant', ARCHS)
def test_a_page_of_512_pixels_stays_below_its_limit(variant, monkeypatch):
    """From one packed block of each stage: the others are of the same size."""
    arch, shape = ARCHS[variant], (512, 512)
    monkeypatch.setattr(explorer, '_largest_difference', lambda one, other: 0.0)
    examples = {
        stage: explorer.pack_block(projections_of(arch, f'focus{stage + 3}.0', stage, shape))
        for stage in (0, 1)
    }
    monkeypatch.setattr(
        explorer, 'pack_block', lambda one: examples[0 if one.startswith('focus3') else 1]
    )
    names = [f'focus{s + 3}.{i}' for s in (0, 1) for i in range(arch.depths[4 + s])]
    noise = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    page, blocks = explorer.build_page(noise, {name: name for name in names}, 'noise.png', variant)
    assert len(page.encode()) <= explorer.MAX_PAGE_BYTES == 10_000_000
    # Only the largest variant has more blocks than fit.
    assert len(blocks) == len(names) if variant != 'b' else 16 <= len(blocks) < len(names)


def test_blocks_are_left_out_evenly_and_kept_when_asked_for(picture, projections, page):
    names = list(projections)

    def blocks(max_bytes):
        page, kept = explorer.build_page(picture, projections, 'a', 'b', max_bytes)
        assert max_bytes is None or len(page.encode()) <= max_bytes
        assert [block['name'] for block in data_of(page)['blocks']] == kept
        return kept

    size = len(explorer.build_page(picture, projections, 'a', 'b')[0].encode())
    assert blocks(size) == blocks(None) == names
    assert blocks(size - 1) == [names[0], names[2], names[3]]
    with pytest.raises(ValueError, match='no room for a single block of a 230 x 216 image'):
        blocks(10_000)


NODE_SCRIPT = """
const fs = require('fs'), vm = require('vm');
vm.runInThisContext(fs.readFileSync(process.argv[1], 'utf8'));
const { blocks, tokens } = JSON.parse(fs.readFileSync(0, 'utf8'));
const results = blocks.map((stored) => {
  const block = openBlock(stored);
  return tokens[stored.name].map(([row, column]) => {
    const groups = [];
    for (let g = 0; g < block.groups; g += 1) {
      const affinity = affinityOf(block, g, row, column);
      const kernel = (which) => Array.from(kernelOf(block, which, affinity, g, row, column));
      groups.push({ affinity: Array.from(affinity), kernels: [kernel(0), kernel(1)] });
    }
    return groups;
  });
});
console.log(JSON.stringify(results));
"""


@pytest.mark.skipif(shutil.which('node') is None, reason='node, which runs the script, is missing')
def test_javascript_computes_what_the_module_computes(page, projections):
    """At corners, borders and inside; in all blocks and groups."""
    tokens = {}
    for name, one in projections.items():
        height, width = one.mixed_size
        tokens[name] = [
            (row, column) for row in (0, 3, height - 1) for column in (0, width // 2, width - 1)
        ]
    content = json.dumps({'blocks': data_of(page)['blocks'], 'tokens': tokens})
    result = subprocess.run(
        ['node', '-e', NODE_SCRIPT, str(explorer._PAGE / 'contmix.js')],
        input=content,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    for (name, one), computed in zip(projections.items(), json.loads(result.stdout), strict=True):
        packed = explorer.pack_block(one)
        for (row, column), groups in zip(tokens[name], computed, strict=True):
            for group, numbers in enumerate(groups):
                affinity = one.affinity[group, row, column].numpy()
                # float32 in Python, float64 in JavaScript.
                bound = packed.affinity_error + 1e-6 * np.abs(affinity).max()
                assert np.abs(numbers['affinity'] - affinity).max() <= bound
                for weights, exact in zip(numbers['kernels'], one.kernels, strict=True):
                    difference = np.abs(weights - exact[group, row, column].numpy()).max()
                    assert difference <= packed.weight_error + 1e-6
