"""What is to be explained, and how certain the model is of it, by the model's own activation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from mmpretrain.models import LinearClsHead, MultiLabelLinearClsHead
from torch import nn

from overlock_mm.analysis.networks import Network
from overlock_mm.analysis.targets import NoTargetError, Question, choose_target

VIEW = SimpleNamespace(
    inputs=torch.zeros(1, 3, 32, 32), picture=np.zeros((32, 32, 3), np.uint8), sample=None
)


def target(model, scope):
    network = Network('model', Config(dict(default_scope=scope)), model)
    return choose_target(network, VIEW, Question())


class Classifier(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.head = kind(num_classes=3, in_channels=4)

    def forward(self, inputs, mode):
        return torch.tensor([[1.0, 2.0, -1.0]])


@pytest.mark.parametrize(
    ('kind', 'activation'),
    [(LinearClsHead, lambda x: x.softmax(1)), (MultiLabelLinearClsHead, torch.sigmoid)],
)
def test_certainty_of_a_class(kind, activation):
    chosen = target(Classifier(kind), 'mmpretrain')
    assert chosen.label == 1
    expected = activation(torch.tensor([[1.0, 2.0, -1.0]]))[0, 1]
    assert chosen.confidence == pytest.approx(float(expected))


class Segmentor(nn.Module):
    def __init__(self, **head):
        super().__init__()
        self.decode_head = SimpleNamespace(out_channels=3, **head)

    def encode_decode(self, inputs, metas):
        scores = torch.tensor([0.1, 0.9, 0.0])[None, :, None, None]
        return scores.expand(len(inputs), 3, *inputs.shape[-2:])


def test_certainty_of_a_place():
    """Queries vote with probabilities; the softmax of these would make 0.54 of 0.9."""
    by_queries = target(Segmentor(transformer_decoder=None), 'mmseg')
    assert (by_queries.label, by_queries.confidence) == (1, pytest.approx(0.9))
    by_logits = target(Segmentor(), 'mmseg')
    assert (by_logits.label, by_logits.confidence) == (1, pytest.approx(0.5388, abs=1e-4))


class Detector(nn.Module):
    def __init__(self, boxes):
        super().__init__()
        self.boxes = boxes

    def predict(self, inputs, samples, rescale):
        sample = DetDataSample()
        if self.boxes is not None:
            count = len(self.boxes)
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(self.boxes),
                scores=torch.linspace(0.9, 0.1, count),
                labels=torch.arange(count),
            )
        return [sample]


def test_objects_without_a_pixel_are_none():
    assert target(Detector([[0.0, 0, 0, 0], [1, 2, 9, 9]]), 'mmdet').label == 1
    with pytest.raises(NoTargetError, match='nothing detected'):
        target(Detector([[0.0, 0, 0, 0]]), 'mmdet')


def test_a_model_without_objects():
    with pytest.raises(ValueError, match=r'test_cfg\.instance_on=True'):
        target(Detector(None), 'mmdet')
