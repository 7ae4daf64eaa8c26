import pytest

from overlock_mm.checkpoint import TASKS, convert_official
from overlock_mm.checkpoint.names import official_task
from tests import official

MANIFESTS = [
    (task, variant, form)
    for task in official.TASK_NAMES
    for variant in official.VARIANTS
    for form in ('training', 'reparameterized')
]


@pytest.mark.parametrize(('task', 'variant', 'form'), MANIFESTS)
def test_manifests_convert_one_to_one(task, variant, form):
    names = official.manifest(task, variant, form)
    converted = convert_official(names, official.TASK_NAMES[task])
    model = official.build_model(task, variant, form)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert converted == shapes
    assert len(converted) == len(names)
    assert official_task(names) == official.TASK_NAMES[task]


@pytest.mark.parametrize('form', ['training', 'reparameterized'])
@pytest.mark.parametrize('task', official.TASK_NAMES)
def test_converted_state_dicts_load_strictly(task, form):
    state_dict = official.official_state_dict(task, 'xt', form)
    model = official.build_model(task, 'xt', form).double()
    model.load_state_dict(convert_official(state_dict, official.TASK_NAMES[task]), strict=True)


def test_deploy_files_of_the_classifier_may_bring_an_auxiliary_head():
    state_dict = official.official_state_dict('cls', 'xt', 'reparameterized')
    assert any(name.startswith('aux_head.') for name in state_dict)
    model = official.build_model('cls', 'xt', form='reparameterized', auxiliary=False).double()
    assert not any('aux' in name for name in model.state_dict())
    model.load_state_dict(convert_official(state_dict, 'classification'), strict=True)


def test_it_renames_and_does_not_copy():
    state_dict = official.official_state_dict('det', 'xt')
    before = dict(state_dict)
    converted = convert_official(state_dict, 'detection')
    assert [id(v) for v in converted.values()] == [id(v) for v in before.values()]
    assert state_dict == before or list(state_dict) == list(before)


def test_other_parts_of_a_full_detector_pass_through():
    names = {
        f'backbone.{name}': shape
        for name, shape in official.manifest('det', 't', 'training').items()
    }
    full = {**names, 'neck.lateral_convs.0.conv.weight': [256], 'rpn_head.rpn_cls.bias': [3]}
    converted = convert_official(full, 'detection')
    assert converted['neck.lateral_convs.0.conv.weight'] == [256]
    assert converted['rpn_head.rpn_cls.bias'] == [3]
    assert len(converted) == len(full)
    assert all(name.startswith(('backbone.', 'neck.', 'rpn_head.')) for name in converted)
    assert not any('patch_embed' in name for name in converted)


def test_names_of_another_task_or_network_are_refused():
    detection = official.manifest('det', 'xt', 'training')
    for task in set(TASKS) - {'detection'}:
        with pytest.raises(ValueError, match='They look like a detection network'):
            convert_official(detection, task)
    with pytest.raises(ValueError, match='1 of 1 names .* first layer1.0.conv1.weight'):
        convert_official({'layer1.0.conv1.weight': [1]}, 'detection')
    with pytest.raises(ValueError, match="task must be one of classification.* got 'det'"):
        convert_official(detection, 'det')
