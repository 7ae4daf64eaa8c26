"""What files say about themselves, and what is not taken."""

import json

import pytest

from overlock_mm.runtime import FORMAT, ModelDescription, ModelFileError
from overlock_mm.runtime.description import KEY

DESCRIPTION = ModelDescription(
    'detection',
    ('cat', 'dog'),
    ((1, 2, 3), (4, 5, 6)),
    size=(64, 96),
    mean=(1.0, 2.0, 3.0),
    std=(1.0, 1.0, 1.0),
    steps=({'step': 'fit', 'size': (64, 96), 'filter': 'bilinear', 'backend': 'cv2'},),
    head={'max_detections': 5},
)


def test_what_is_written_is_read():
    assert ModelDescription.from_metadata({KEY: DESCRIPTION.to_json()}, 'a.onnx') == DESCRIPTION


@pytest.mark.parametrize(
    ('metadata', 'words'),
    (
        ({}, 'a.onnx holds no metadata of overlock_mm'),
        ({'overlock_mm': '0.0.9'}, 'older overlock_mm: export it again'),
        ({KEY: '{'}, 'are damaged'),
        ({KEY: json.dumps({'task': 'detection'})}, "are damaged .*'format'"),
        ({KEY: json.dumps({'format': FORMAT})}, 'no task'),
        ({KEY: json.dumps({'format': FORMAT, 'task': 'detection', 'colour': 1})}, 'colour'),
        ({KEY: json.dumps({'format': FORMAT + 1})}, 'reads up to .* --upgrade'),
    ),
)
def test_what_is_not_read(metadata, words):
    with pytest.raises(ModelFileError, match=words):
        ModelDescription.from_metadata(metadata, 'a.onnx')
