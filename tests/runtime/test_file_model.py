"""What the outputs of a file mean: heads of one channel, of several labels, of masks."""

import numpy as np
import pytest
import torch
from torch import nn

from overlock_mm.export.parts import ExportableClassifier, ExportableSegmentor
from overlock_mm.runtime import ModelDescription
from overlock_mm.runtime.file_model import result_of
from overlock_mm.runtime.preprocessing import Prepared

IMAGE = np.zeros((20, 30, 3), np.uint8)
PREPARED = Prepared(np.zeros((3, 40, 60), np.float32), (20, 30), (40, 60), (40, 60))


class Head(nn.Module):
    """As far as an export looks at one."""

    align_corners = False

    def __init__(self, **settings):
        super().__init__()
        vars(self).update(settings)


class MultiLabelClsHead(Head):
    """By its name it is mmpretrain's."""


class Model(nn.Module):
    """Gives its own logits for every image."""

    test_cfg = {}

    def __init__(self, logits, **heads):
        super().__init__()
        self.logits = logits
        for name, head in heads.items():
            setattr(self, name, head)

    def forward(self, image, mode):
        return self.logits


def result(outputs, task, head):
    description = ModelDescription(task, ('a', 'b', 'c'), head=head)
    return result_of(outputs, PREPARED, description, IMAGE, None)


def test_a_segmentor_of_one_channel():
    logits = torch.full((1, 1, 10, 15), -3.0)
    logits[..., 5:, :] = 3.0
    part = ExportableSegmentor(Model(logits, decode_head=Head(out_channels=1, threshold=0.3)))
    scores, labels = part(torch.zeros(1, 3, 40, 60))
    assert part.head == {'scores': 'sigmoid', 'threshold': 0.3}
    assert scores.shape == (1, 1, 40, 60) and scores.max() < 1
    assert torch.equal(labels[0], (scores[0, 0] > 0.3).long())
    found = result({'scores': scores[0].numpy()}, 'segmentation', part.head).label_map
    assert found.shape == (20, 30)
    assert (found[11:] == 1).all() and (found[:9] == 0).all()


def test_a_segmentor_of_three_classes_leaves_padding_out():
    logits = torch.zeros(1, 3, 40, 60)
    logits[:, 1, :, :30] = 2.0
    logits[:, 2, :, 30:] = 2.0
    part = ExportableSegmentor(Model(logits, decode_head=Head(out_channels=3)))
    scores, labels = part(torch.zeros(1, 3, 40, 60))
    assert torch.allclose(scores.sum(1), torch.ones(1, 40, 60))
    assert torch.equal(labels, logits.argmax(1))
    description = ModelDescription('segmentation', ('a', 'b', 'c'), head=part.head)
    prepared = Prepared(PREPARED.values, (20, 30), (40, 30), (40, 30))  # the right half is padding
    found = result_of({'scores': scores[0].numpy()}, prepared, description, IMAGE, None)
    assert (found.label_map == 1).all()
    assert found.to_dict() == {'b': 1.0}


@pytest.mark.parametrize(
    ('head', 'settings', 'labels'),
    (
        (MultiLabelClsHead(thr=None), {'scores': 'sigmoid', 'threshold': 0.5}, [0, 2]),
        (MultiLabelClsHead(thr=0.9), {'scores': 'sigmoid', 'threshold': 0.9}, [2]),
        (Head(), {'scores': 'softmax'}, [2]),
    ),
)
def test_labels_of_a_classifier(head, settings, labels):
    part = ExportableClassifier(Model(torch.tensor([[1.0, -1.0, 3.0]]), head=head))
    assert part.head == settings
    scores = part(torch.zeros(1, 3, 8, 8))[0].numpy()
    found = result({'scores': scores}, 'classification', part.head)
    assert found.labels.tolist() == labels
    assert found.names == ['abc'[label] for label in labels]


def test_objects_in_pixels_of_the_picture():
    outputs = {
        'boxes': np.array([[10, 10, 30, 20], [0, 0, 0, 0]], np.float32),
        'scores': np.array([0.9, 0], np.float32),
        'labels': np.array([1, -1]),
        'count': np.int64(1),
        'masks': np.ones((2, 28, 28), np.float32),
    }
    found = result(outputs, 'detection', {'masks': 'box', 'threshold': 0.5})
    assert found.boxes.tolist() == [[5, 5, 15, 10]]
    assert found.names == ['b']
    assert found.masks[0, 5:10, 5:15].all() and found.masks.sum() == 50
    assert len(found.above(0.95)) == 0
