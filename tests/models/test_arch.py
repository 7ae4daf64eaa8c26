import pytest

from overlock_mm import ARCHS, OverLoCKArch

TINY = dict(channels=(16, 32, 64, 64), depths=(1, 1, 1, 1, 2, 1), groups=(2, 2))


def test_published_pyramids():
    pyramids = {name: arch.pyramid_channels for name, arch in ARCHS.items()}
    assert pyramids == {
        'xt': (56, 112, 340, 420),
        't': (64, 128, 384, 640),
        's': (64, 128, 448, 640),
        'b': (80, 160, 528, 720),
    }


def test_a_dict_is_an_arch_and_lists_become_tuples():
    lists = {name: list(value) for name, value in TINY.items()}
    assert OverLoCKArch.from_spec(lists) == OverLoCKArch(**TINY)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(channels=(16, 32, 64)), r'channels must have 4 integers, got \(16, 32, 64\)'),
        (dict(channels=(15, 32, 64, 64)), r'channels\[0\] must be even.* got 15'),
        (dict(channels=(16, 32, 64, 66)), r'channels\[3\] must be divisible by 4.* got 66'),
        (dict(channels=(16, 32, 60, 64)), 'stage 3 must be divisible.*width 60 and groups 2'),
        (dict(groups=(2, 3)), 'stage 4 must be divisible.*width 64 and groups 3.*multiple of 12'),
        (dict(depths=(1, 1, 0, 1, 2, 1)), 'depths must hold positive integers'),
        (dict(depths=(1, 1, 1, 1)), 'depths must have 6'),
        (dict(kernel_sizes=(17, 15, 12, 7)), 'kernel_sizes must be odd and one of 5, .* got 12'),
        (dict(contmix_small_kernel=4), 'contmix_small_kernel must be odd.* got 4'),
        (dict(contmix_small_kernel=9), r'at most the kernel sizes of stages 3 and 4 \(7\), got 9'),
        (dict(depth=(1,)), 'unknown keys depth. Known: channels'),
    ],
)
def test_numbers_that_contradict_the_structure(change, message):
    with pytest.raises(ValueError, match=message):
        OverLoCKArch.from_spec({**TINY, **change})


def test_unknown_and_incomplete_archs():
    with pytest.raises(ValueError, match="one of xt, t, s, b or a dict, got 'tiny'"):
        OverLoCKArch.from_spec('tiny')
    with pytest.raises(ValueError, match='lacks groups'):
        OverLoCKArch.from_spec({k: v for k, v in TINY.items() if k != 'groups'})
    with pytest.raises(TypeError, match='a name or a dict, got int'):
        OverLoCKArch.from_spec(3)
