"""Programs of ``torch.export``: the same results for any batch, and what has none."""

import resource

import pytest
import torch

from overlock_mm import OverLoCK
from overlock_mm.export import exportable
from overlock_mm.export.torch_program import export_program
from tests.models.helpers import TINY, randomize_parameters


@pytest.mark.slow
def test_a_program_for_any_batch(tmp_path, monkeypatch):
    arch = dict(channels=(16, 16, 64, 64), depths=(1, 1, 1, 1, 1, 1), groups=(2, 2))
    model = randomize_parameters(OverLoCK(arch, out_indices=(3,))).eval()
    model.switch_to_deploy()
    path = tmp_path / 'backbone.pt2'
    assert export_program(exportable(model), path, (64, 96), metadata={'about': 'x'}) < 1e-4
    files = {'about': ''}
    program = torch.export.load(path, extra_files=files).module()
    assert files['about'] in ('x', b'x')
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(program(image), model(image), atol=1e-4, rtol=1e-4)
    content = path.read_bytes()
    monkeypatch.setattr(torch.export, 'export', lambda *args, **kwargs: torch.export.load(path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'No space left on device.*backbone\.pt2'):
            export_program(exportable(model), path, (64, 96))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_what_has_no_program(tmp_path):
    with pytest.raises(ValueError, match='for one size of images, --shape'):
        export_program(exportable(OverLoCK(TINY)), tmp_path / 'any.pt2', None)
    assert not list(tmp_path.iterdir())
