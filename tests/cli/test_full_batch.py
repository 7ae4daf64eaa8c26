"""A recipe that leaves out incomplete batches, on data that make no complete one."""

import pytest

from overlock_mm.cli.preflight import check_data
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.shapes import write_classification
from overlock_mm.utils.config import load_config
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def ten_images(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes')
    write_classification(root, num_train=10, num_val=5)
    return root


@pytest.mark.parametrize(
    ('launcher', 'processes', 'batch_size', 'drop_last', 'enough'),
    [
        ('none', 4, 10, True, True),
        ('none', 4, 11, True, False),
        ('none', 4, 11, False, True),
        # Three for each of four processes: mmengine's sampler repeats two images.
        ('pytorch', 4, 3, True, True),
        ('pytorch', 4, 4, True, False),
    ],
)
def test_an_epoch_without_a_step_is_an_error(
    launcher, processes, batch_size, drop_last, enough, ten_images, monkeypatch
):
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    options = {'data_root': str(ten_images), 'launcher': launcher}
    cfg = load_config(str(ROOT / 'configs/demo/classifier_overlock_shapes.py'), options)
    cfg.train_dataloader.update(batch_size=batch_size, drop_last=drop_last)
    if enough:
        check_data(cfg, ('train', 'val'))
    else:
        with pytest.raises(DataError, match='no step: 10 images .*batch_size'):
            check_data(cfg, ('train', 'val'))
