"""The accuracy of the classifier that teaches the Overview-Net."""

import pytest
import torch
from mmpretrain.structures import DataSample

from overlock_mm.engine.auxiliary_accuracy import AuxiliaryAccuracy
from overlock_mm.models.classifier import OverLoCKClsHead

LABELS = (0, 1, 2, 2)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return OverLoCKClsHead(num_classes=3, in_channels=[8, 6], hidden_channels=16).eval()


def predict(head):
    feats = [torch.randn(4, 8, 2, 2), torch.randn(4, 6, 2, 2)]
    samples = head.predict(feats, [DataSample().set_gt_label(label) for label in LABELS])
    return feats, samples


def test_it_judges_the_auxiliary_classifier(head):
    feats, samples = predict(head)
    metric = AuxiliaryAccuracy(topk=(1,))
    metric.process(None, [sample.to_dict() for sample in samples])
    chosen = head.forward_auxiliary(feats).argmax(1)
    expected = 100 * (chosen == torch.tensor(LABELS)).float().mean().item()
    assert metric.evaluate(len(LABELS)) == {'auxiliary/top1': pytest.approx(expected)}
    # The main classifier's predictions stay what they are.
    scores = torch.stack([sample.pred_score for sample in samples])
    assert torch.equal(scores, head(feats).softmax(1))
    assert not torch.equal(scores, torch.stack([s.auxiliary_score for s in samples]))


def test_a_model_without_the_auxiliary_classifier_is_refused(head):
    head.drop_auxiliary()
    _, samples = predict(head)
    assert 'auxiliary_score' not in samples[0]
    with pytest.raises(KeyError, match='set model.head.auxiliary=True, or remove the metric'):
        AuxiliaryAccuracy().process(None, [sample.to_dict() for sample in samples])
