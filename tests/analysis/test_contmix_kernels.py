"""The kernels that are shown are those with which the module mixes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.analysis import contmix_kernels, project_contmix
from overlock_mm.analysis.contmix_kernels import ContMixProjections, contmix_blocks
from tests.models.helpers import TINY, randomize_parameters
from tests.tolerances import assert_close

#: 14 x 15 tokens at stride 16, which need no enlarging; 5 x 4 and 7 x 8, of which the first do.
LARGE, SMALL = (216, 230), (76, 60)


@pytest.fixture(scope='module')
def model():
    model = randomize_parameters(OverLoCK(TINY)).double().eval()
    # Kernels far from even, as those of a trained network.
    for module in contmix_blocks(model).values():
        nn.init.normal_(module.kernel_proj.weight, std=0.5)
        nn.init.normal_(module.rpb_small)
        nn.init.normal_(module.rpb_large)
    return model


@pytest.fixture(scope='module')
def mixed(model):
    """What each ContMix receives as values and what it has mixed, before its projection."""

    def run(size):
        torch.manual_seed(1)
        image = torch.randn(3, *size, dtype=torch.float64)
        seen = {}
        hooks = []
        for block, module in contmix_blocks(model).items():
            seen[block] = {}
            hooks += [
                module.register_forward_pre_hook(
                    lambda module, maps, kept=seen[block]: kept.update(value=maps[2][0])
                ),
                module.out_proj.register_forward_pre_hook(
                    lambda module, maps, kept=seen[block]: kept.update(out=maps[0][0])
                ),
            ]
        with torch.no_grad():
            model(image[None])
        for hook in hooks:
            hook.remove()
        return image, seen

    return {size: run(size) for size in (LARGE, SMALL)}


def aggregate(kernels, value):
    """Both kernels of a token over the values [D, H, W] in their windows: [D]."""
    halves = []
    groups = len(kernels.affinity)
    for kernel, (left, top, right, bottom), half in zip(
        kernels.kernels, kernels.windows, value.chunk(2), strict=True
    ):
        window = half.unflatten(0, (groups, -1))[..., top:bottom, left:right]
        halves.append((kernel[:, None] * window).sum((-2, -1)).flatten())
    return torch.cat(halves)


def middle(box):
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


@pytest.mark.parametrize('block', ['focus3.0', 'focus3.1', 'focus4.1'])
@pytest.mark.parametrize('position', [(0, 0), (229, 215), (3, 120), (100, 2), (115, 108)], ids=str)
def test_mixing_with_the_kernels_is_what_the_module_does(model, mixed, block, position):
    image, seen = mixed[LARGE]
    at_token = contmix_kernels(model, image, block, position)
    row, column = at_token.token
    expected = seen[block]['out'][:, row, column]
    assert at_token.mixed_size == tuple(seen[block]['value'].shape[-2:])
    assert_close(aggregate(at_token, seen[block]['value']), expected)


@pytest.mark.parametrize('block', ['focus3.0', 'focus3.1', 'focus4.0'])
def test_an_upsampled_map_is_mixed_before_it_is_averaged(model, mixed, block):
    """Each token of the block's map is the mean over the upsampled tokens that fall into it."""
    image, seen = mixed[SMALL]
    value, expected = seen[block]['value'], seen[block]['out']
    projections = project_contmix(model, image, [block])[block]
    height, width = projections.mixed_size
    assert projections.upsampled
    assert (height, width) > tuple(value.shape[-2:])
    value = F.interpolate(value[None], (height, width), mode='bilinear', align_corners=False)[0]
    rows, columns = projections.edges()
    out = torch.empty(len(value), height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            box = (columns[column], rows[row], columns[column + 1], rows[row + 1])
            at_token = projections.at(middle(box))
            assert at_token.token == (row, column)
            assert at_token.token_box == box
            out[:, row, column] = aggregate(at_token, value)
    assert_close(F.adaptive_avg_pool2d(out, expected.shape[-2:]), expected)


def test_kernels_sum_to_one_and_affinities_are_those_of_pooled_keys(model, mixed):
    image, _ = mixed[LARGE]
    at_token = contmix_kernels(model, image, 'focus3.1', (100, 100))
    assert at_token.affinity.shape == (4, 7, 7)
    for kernel in at_token.kernels:
        assert_close(kernel.sum((-2, -1)), torch.ones(4, dtype=torch.float64))
    # Each group and size has its own.
    assert at_token.kernels[1].std(0).max() > 1e-3


def test_boxes_in_the_image(model, mixed):
    image, _ = mixed[LARGE]
    at_token = contmix_kernels(model, image, 'focus3.0', (229, 0))
    assert at_token.token == (0, 14)
    assert at_token.token_box == (round(14 * 230 / 15), 0, 230, round(216 / 14))
    assert at_token.windows == ((10, 0, 15, 5), (2, 0, 15, 13))
    assert at_token.window_boxes[0] == (round(10 * 230 / 15), 0, 230, round(5 * 216 / 14))
    # 14 rows are seven times two, 15 columns overlap by one token each.
    assert at_token.regions[:3] == ((0, 0, 3, 2), (2, 0, 5, 2), (4, 0, 7, 2))
    assert at_token.regions[-1] == (12, 12, 15, 14)
    assert at_token.region_boxes[-1] == (round(12 * 230 / 15), round(12 * 216 / 14), 230, 216)


def test_regions_are_those_of_the_pooled_keys():
    for height, width in ((13, 16), (7, 31), (14, 20)):
        query, key = torch.zeros(1, 1, height, width), torch.zeros(1, 1, 49)
        projections = ContMixProjections('focus3.0', query, key, [], 1.0, (224, 224), False)
        rows, columns = projections.region_spans()
        ramp = torch.arange(height * width, dtype=torch.float64).view(1, height, width)
        expected = F.adaptive_avg_pool2d(ramp, 7)[0]
        means = [[ramp[0, a:b, c:d].mean() for c, d in columns] for a, b in rows]
        assert_close(torch.tensor(means), expected)


class TestBadInput:
    image = torch.zeros(3, 64, 64, dtype=torch.float64)

    def test_unknown_block_lists_those_there_are(self, model):
        with pytest.raises(ValueError, match=r"no block 'focus5.0'.*focus3.0, focus3.1, focus4.0"):
            contmix_kernels(model, self.image, 'focus5.0', (0, 0))

    @pytest.mark.parametrize('position', [(64, 0), (0, 64), (-1, 3), (float('nan'), 0)])
    def test_position_outside(self, model, position):
        with pytest.raises(ValueError, match='within the 64 x 64 pixels .* got x='):
            contmix_kernels(model, self.image, 'focus3.0', position)

    def test_training_mode(self):
        with pytest.raises(ValueError, match=r'Call model.eval\(\) first'):
            contmix_kernels(OverLoCK(TINY), self.image, 'focus3.0', (0, 0))

    @pytest.mark.parametrize('shape', [(2, 3, 64, 64), (64, 64)])
    def test_several_images(self, model, shape):
        with pytest.raises(ValueError, match='must be one image'):
            contmix_kernels(model, torch.zeros(shape), 'focus3.0', (0, 0))

    def test_network_without_contmix(self):
        with pytest.raises(TypeError, match='must be an OverLoCK or have one .* got Linear'):
            contmix_kernels(nn.Linear(1, 1), self.image, 'focus3.0', (0, 0))
        detector = nn.Module()
        detector.backbone = nn.Identity()
        with pytest.raises(TypeError, match='got Module with the backbone Identity'):
            contmix_kernels(detector, self.image, 'focus3.0', (0, 0))

    def test_block_that_is_never_reached(self):
        model = OverLoCK(TINY, out_indices=(0, 2)).eval()
        with pytest.raises(ValueError, match=r'never reaches focus4.1: .*out_indices=\(0, 2\)'):
            contmix_kernels(model, self.image, 'focus4.1', (0, 0))


def test_a_model_with_the_backbone_will_do(model):
    detector = nn.Module()
    detector.backbone = model
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    one = contmix_kernels(detector, image, 'focus4.0', (95, 0))
    other = contmix_kernels(model, image[0].float(), 'focus4.0', (95, 0))
    assert torch.allclose(one.kernels[1], other.kernels[1], atol=1e-6)
