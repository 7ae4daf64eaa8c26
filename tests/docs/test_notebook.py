"""docs/first_steps.ipynb runs from its first to its last cell, on tiny data."""

import json

import pytest

from tests.docs.pages import ROOT

# For the test: fewer pictures, and a child of the same config with one step and few objects.
TINY = {
    'num_train=400, num_val=100': 'num_train=4, num_val=2',
    'configs/demo/cascade_overlock_shapes.py': 'configs/detection/cascade_overlock_s.py',
    "'loss', 'coco/bbox_mAP'": "'loss'",
}


@pytest.mark.slow
def test_ten_cells(project):
    notebook = json.loads((ROOT / 'docs/first_steps.ipynb').read_text())
    sources = [''.join(cell['source']) for cell in notebook['cells']]
    assert len(sources) == 10
    assert not any(cell.get('outputs') for cell in notebook['cells'])
    code = [
        source
        for source, cell in zip(sources, notebook['cells'], strict=True)
        if cell['cell_type'] == 'code'
    ]
    names = {}
    for source in code:
        for documented, tiny in TINY.items():
            source = source.replace(documented, tiny)
        exec(compile(source, 'cell', 'exec'), names)
    result, again = names['result'], names['again']
    assert len(result) == len(again) == 5
    assert abs(again.boxes - result.boxes).max() < 1e-3
    assert len(names['entries']) == 10
    assert (project / 'work_dirs/notebook/curves.png').is_file()
