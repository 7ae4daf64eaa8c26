"""The scenes of the synthetic data set and the files that they are written to."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from overlock_mm.datasets import (
    METAINFO,
    draw_scene,
    scene_rng,
    write_classification,
    write_shapes,
)

ROOT = Path(__file__).parents[2]
SIZE = (64, 80)
SMALL = dict(num_train=4, num_val=2, image_size=SIZE, seed=3)


def tree(root):
    """Relative path and content of every file."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def coco(root, split='train'):
    return json.loads((root / f'coco/annotations/instances_{split}2017.json').read_text())


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'set'
    assert write_shapes(root, **SMALL)
    return root


@pytest.fixture(scope='module')
def scenes():
    return [draw_scene(scene_rng(0, 'train', index)) for index in range(24)]


def test_scene_has_the_documented_form(scenes):
    for scene in scenes:
        count = len(scene.labels)
        assert 3 <= count <= 6
        assert scene.image.shape == (128, 160, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (count, 128, 160)
        assert scene.masks.dtype == bool
        assert scene.labels.dtype == np.int64
        assert scene.semantic.shape == (128, 160)
        assert scene.semantic.dtype == np.uint8


def test_masks_are_disjoint_and_large_enough(scenes):
    for scene in scenes:
        assert scene.masks.sum(axis=0).max() == 1
        # The rule counts samples, a mask counts pixels: a few pixels of the border may differ.
        assert scene.masks.sum(axis=(1, 2)).min() > 130


def test_boxes_are_tight(scenes):
    for scene in scenes:
        for mask, (x1, y1, x2, y2) in zip(scene.masks, scene.boxes, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum()
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()


def test_semantic_map_agrees_with_the_masks(scenes):
    for scene in scenes:
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            assert np.all(scene.semantic[mask] == label + 2)
        rest = scene.semantic[~scene.masks.any(axis=0)]
        assert set(np.unique(rest)) <= {0, 1}
        # Only where three surfaces meet does none cover half of a pixel.
        assert np.mean(scene.semantic == 0) < 0.002


def test_every_class_is_drawn_and_some_instances_are_hidden_in_part(scenes):
    labels = np.concatenate([scene.labels for scene in scenes])
    assert np.bincount(labels, minlength=5).min() >= 10
    overlapping = 0
    for scene in scenes:
        x1, y1, x2, y2 = scene.boxes.T
        width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
        height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
        overlapping += np.count_nonzero(np.triu((width > 0) & (height > 0), k=1))
    assert overlapping > len(scenes)


# Area over that of the circumscribed circle, and over that of the convex hull: numbers of geometry
# with room for the range of forms, rounded corners and pixels.
FORM = dict(
    ellipse=((0.62, 1.03), (0.97, 1.01)),
    rectangle=((0.48, 0.68), (0.96, 1.01)),
    ring=((0.40, 0.76), (0.50, 0.78)),
    star=((0.37, 0.57), (0.55, 0.75)),
    triangle=((0.35, 0.47), (0.96, 1.01)),
)


@pytest.mark.parametrize('label', range(5))
def test_outlines_have_the_form_of_their_class(label):
    area_range, hull_range = FORM[METAINFO['classes'][label]]
    size, radius, whole = 192, 48, 0
    for index in range(12):
        rng = np.random.default_rng(index)
        scene = draw_scene(rng, size, size, (1, 1), diameters=(0.5, 0.5), label=label)
        assert scene.labels.tolist() == [label]
        if scene.boxes.min() == 0 or scene.boxes.max() == size:
            continue  # cut off by the border
        whole += 1
        area = scene.masks.sum()
        hull = cv2.convexHull(np.argwhere(scene.masks[0]).astype(np.int32))
        filled = cv2.fillConvexPoly(np.zeros((size, size), np.uint8), hull[..., ::-1], 1)
        assert area_range[0] < area / (np.pi * radius**2) < area_range[1]
        assert hull_range[0] < area / filled.sum() < hull_range[1]
    assert whole >= 3


def test_a_ring_has_a_hole():
    scene = draw_scene(np.random.default_rng(1), 96, 96, (1, 1), diameters=(0.6, 0.6), label=2)
    x1, y1, x2, y2 = scene.boxes[0]
    assert METAINFO['classes'][2] == 'ring'
    assert not scene.masks[0, (y1 + y2) // 2, (x1 + x2) // 2]
    assert scene.semantic[(y1 + y2) // 2, (x1 + x2) // 2] == 1


def test_shapes_stand_out_from_the_background(scenes):
    differences = [
        np.linalg.norm(
            scene.image[mask].mean(axis=0) - scene.image[scene.semantic == 1].mean(axis=0)
        )
        for scene in scenes
        for mask in scene.masks
    ]
    assert np.quantile(differences, 0.05) > 40


def test_the_generator_alone_decides():
    first, again = (draw_scene(scene_rng(7, 'val', 5), *SIZE) for _ in range(2))
    for name in ('image', 'masks', 'labels', 'semantic'):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    for other in (scene_rng(8, 'val', 5), scene_rng(7, 'train', 5), scene_rng(7, 'val', 6)):
        assert not np.array_equal(first.image, draw_scene(other, *SIZE).image)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(height=63), 'height must be an integer of at least 64 pixels, got 63'),
        (dict(width=100.0), 'width must be an integer of at least 64 pixels, got 100.0'),
        (dict(num_instances=(0, 2)), r'num_instances .* got \(0, 2\)'),
        (dict(num_instances=(4, 3)), r'num_instances .* got \(4, 3\)'),
        (dict(diameters=(0.1, 0.5)), r'diameters .* got \(0.1, 0.5\)'),
        (dict(diameters=(0.5, 1.5)), r'diameters .* got \(0.5, 1.5\)'),
        (dict(label=5), r'label must be in 0\.\.4, got 5'),
    ],
)
def test_bad_scene_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(np.random.default_rng(0), **arguments)


def test_too_many_instances_are_refused():
    with pytest.raises(RuntimeError, match='of 90 found no place'):
        draw_scene(np.random.default_rng(0), *SIZE, num_instances=(90, 90))


def test_same_seed_gives_the_same_files(drawn, tmp_path):
    write_shapes(tmp_path / 'again', **SMALL)
    assert tree(tmp_path / 'again') == tree(drawn)


def test_a_shorter_set_is_the_beginning_of_a_longer_one(drawn, tmp_path):
    write_shapes(tmp_path / 'short', **{**SMALL, 'num_train': 2})
    short, full = tree(tmp_path / 'short'), tree(drawn)
    for path in (p for p in short if p.endswith('.png')):
        assert short[path] == full[path]
    few, many = coco(tmp_path / 'short'), coco(drawn)
    assert few['images'] == many['images'][:2]
    assert few['annotations'] == many['annotations'][: len(few['annotations'])]
    assert coco(tmp_path / 'short', 'val') == coco(drawn, 'val')


@pytest.mark.parametrize(('split', 'ade'), [('train', 'training'), ('val', 'validation')])
def test_files_hold_what_was_drawn(drawn, split, ade):
    document = coco(drawn, split)
    assert [c['name'] for c in document['categories']] == list(METAINFO['classes'])
    assert len(document['images']) == SMALL[f'num_{split}']
    for index, image in enumerate(document['images']):
        scene = draw_scene(scene_rng(SMALL['seed'], split, index), *SIZE)
        name = image['file_name']
        assert (image['height'], image['width']) == SIZE
        for path in (f'coco/{split}2017/{name}', f'ade/images/{ade}/{name}'):
            assert np.array_equal(np.asarray(Image.open(drawn / path)), scene.image)
        labels = np.asarray(Image.open(drawn / f'ade/annotations/{ade}/{name}'))
        assert np.array_equal(labels, scene.semantic)

        written = [a for a in document['annotations'] if a['image_id'] == image['id']]
        assert [a['category_id'] - 1 for a in written] == scene.labels.tolist()
        for annotation, mask, box in zip(written, scene.masks, scene.boxes, strict=True):
            assert np.array_equal(run_lengths.decode(annotation['segmentation']), mask)
            assert annotation['area'] == mask.sum()
            x, y, width, height = annotation['bbox']
            assert [x, y, x + width, y + height] == box.tolist()
            assert annotation['iscrowd'] == 0
    ids = [a['id'] for a in document['annotations']]
    assert len(set(ids)) == len(ids)


def test_classification_folders(tmp_path):
    write_classification(tmp_path / 'set', num_train=7, num_val=5, image_size=(64, 64))
    files = sorted(p for p in tree(tmp_path / 'set') if p != 'shapes.json')
    assert len(files) == 12
    assert {p.split('/')[0] for p in files} == {'train', 'val'}
    for split in ('train', 'val'):
        folders = sorted(p.name for p in (tmp_path / 'set' / split).iterdir())
        assert folders == list(METAINFO['classes'])
    assert np.asarray(Image.open(tmp_path / 'set' / files[0])).shape == (64, 64, 3)


def test_progress_counts_to_the_end(tmp_path):
    calls = []
    write_shapes(tmp_path / 'set', **SMALL, progress=lambda *state: calls.append(state))
    assert calls == [(done, 6) for done in range(1, 7)]


def test_the_same_set_is_used_again(drawn):
    before = {p: p.stat().st_mtime_ns for p in drawn.rglob('*')}
    assert not write_shapes(drawn, **SMALL)
    assert not write_shapes(drawn, **SMALL, overwrite=True)
    assert {p: p.stat().st_mtime_ns for p in drawn.rglob('*')} == before


def test_another_set_is_not_replaced_unasked(drawn):
    before = tree(drawn)
    with pytest.raises(FileExistsError, match=r'seed 3.* but one with .*seed 4.*--overwrite'):
        write_shapes(drawn, **{**SMALL, 'seed': 4})
    assert tree(drawn) == before


def test_overwrite_replaces_and_leaves_nothing_behind(tmp_path):
    write_shapes(tmp_path / 'set', **SMALL)
    assert write_shapes(tmp_path / 'set', **{**SMALL, 'num_train': 1}, overwrite=True)
    assert len(coco(tmp_path / 'set')['images']) == 1
    assert os.listdir(tmp_path) == ['set']


def test_foreign_folders_and_files_are_left_alone(tmp_path):
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    (foreign / 'thesis.txt').write_text('precious')
    with pytest.raises(FileExistsError, match='not a data set drawn by overlock_mm'):
        write_shapes(foreign, **SMALL, overwrite=True)

    write_shapes(tmp_path / 'set', **SMALL)
    (tmp_path / 'set/coco/notes.txt').write_text('precious')
    with pytest.raises(FileExistsError, match=r'coco/notes\.txt'):
        write_shapes(tmp_path / 'set', **{**SMALL, 'seed': 4}, overwrite=True)
    assert (tmp_path / 'set/coco/notes.txt').read_text() == 'precious'
    assert tree(foreign) == {'thesis.txt': b'precious'}


def test_a_set_with_missing_files_is_reported_and_can_be_redrawn(tmp_path):
    write_shapes(tmp_path / 'set', **SMALL)
    lost = tmp_path / 'set/coco/val2017/000000000002.png'
    lost.unlink()
    with pytest.raises(FileExistsError, match=r'lacks 1 of its files, coco/val2017/000000000002'):
        write_shapes(tmp_path / 'set', **SMALL)
    assert write_shapes(tmp_path / 'set', **SMALL, overwrite=True)
    assert lost.is_file()


@pytest.mark.parametrize('record', ['', '[]', '{"kind": "scenes"}'])
def test_an_unreadable_record_is_reported(tmp_path, record):
    (tmp_path / 'shapes.json').write_text(record)
    with pytest.raises(FileExistsError, match='cannot be read as the record'):
        write_shapes(tmp_path, **SMALL, overwrite=True)


@pytest.mark.parametrize('existing', [False, True])
def test_an_interrupted_run_leaves_what_was_there(tmp_path, existing):
    if existing:
        write_shapes(tmp_path / 'set', **SMALL)
    before = tree(tmp_path)

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / 'set', **{**SMALL, 'seed': 4}, overwrite=True, progress=interrupt)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == (['set'] if existing else [])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_train=0), 'num_train must be an integer of at least 1, got 0'),
        (dict(num_val=-1), 'num_val must be an integer of at least 1, got -1'),
        (dict(seed=-1), 'seed must be an integer of at least 0, got -1'),
        (dict(image_size=(64, 32)), 'width must be an integer of at least 64 pixels, got 32'),
    ],
)
@pytest.mark.parametrize('write', [write_shapes, write_classification])
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, write, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / 'set', **{**SMALL, **changes})
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_command_draws_and_refuses(run_python, tmp_path):
    command = [ROOT / 'tools/dataset_tools/generate_shapes.py', tmp_path / 'set']
    arguments = ['--num-train', '2', '--num-val', '1', '--size', '64', '80', '--seed', '3']
    first = run_python(*command, *arguments)
    assert first.returncode == 0, first.stderr
    expected = tmp_path / 'expected'
    write_shapes(expected, num_train=2, num_val=1, image_size=SIZE, seed=3)
    assert tree(tmp_path / 'set') == tree(expected)

    refused = run_python(*command, *arguments, '--seed', 4)
    assert refused.returncode == 1
    assert 'error: ' in refused.stderr and '--overwrite' in refused.stderr
    assert 'Traceback' not in refused.stderr
