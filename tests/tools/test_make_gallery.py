"""The gallery: its list, how it is made, and that the page in the repository belongs to it."""

import re
import shlex
import string

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tools.dev import make_gallery as gallery

NAMES = [entry.name for entry in gallery.ENTRIES]
WORDS = {'scenes', 'shapes', 'out', *gallery.TASKS, *(f'{task}_run' for task in gallery.TASKS)}


@pytest.fixture
def work_dir(untrained, pictures, tmp_path):
    """As tools/dev/run_demo.py leaves it, with only a classifier, and untrained."""
    folder = tmp_path / 'demo'
    (folder / 'classification').mkdir(parents=True)
    config, weights = untrained('classification')
    (folder / 'classification/epoch_8.pth').symlink_to(weights)
    (folder / 'classes').mkdir()
    (folder / 'classes/val').symlink_to(pictures)
    return folder


def test_entries_can_be_filled_in():
    assert len(set(NAMES)) == len(NAMES)
    for entry in gallery.ENTRIES:
        for text in (entry.command, *entry.pictures):
            assert {field for _, field, _, _ in string.Formatter().parse(text) if field} <= WORDS
        assert (ROOT / 'tools' / shlex.split(entry.command)[0]).is_file()
        assert '{out}' in entry.command
        assert entry.pictures and all(p.startswith('{out}/') for p in entry.pictures)


@pytest.mark.slow
def test_an_entry_is_made(work_dir, preloaded_python, monkeypatch, tmp_path):
    monkeypatch.setattr('sys.executable', preloaded_python)
    entry = gallery.Entry(
        'noise',
        'Noise',
        '',
        "visualization/demo.py '{shapes}/*.*g' {classification} --out-dir {out}",
        ('{out}/*.png',),
    )
    assert entry.tasks == ['classification']
    words = gallery.fillings(work_dir, gallery.trained_models(work_dir, [entry]))
    command = gallery.make(entry, words, tmp_path)
    checkpoint = work_dir / 'classification/epoch_8.pth'
    assert command == (
        f"python tools/visualization/demo.py '{work_dir}/classes/val/*.*g' "
        f'configs/demo/classifier_overlock_shapes.py {checkpoint} --out-dir work_dirs/noise'
    )
    with Image.open(tmp_path / 'noise.jpg') as picture:
        # Two pictures of 96 x 120 and 100 x 96 pixels, four times as large, the second adapted.
        assert picture.size == (480 + gallery.GAP + round(384 * 384 / 400), 384)


@pytest.mark.slow
def test_a_command_that_fails_is_told(work_dir, preloaded_python, monkeypatch, tmp_path):
    monkeypatch.setattr('sys.executable', preloaded_python)
    entry = gallery.Entry(
        'no', 'No', '', 'visualization/demo.py /no/where {classification}', ('{out}/*.png',)
    )
    words = gallery.fillings(work_dir, gallery.trained_models(work_dir, [entry]))
    with pytest.raises(RuntimeError, match='(?s)demo.py /no/where .*failed:.*/no/where'):
        gallery.make(entry, words, tmp_path)


def test_models_that_are_not_trained_yet(fails, tmp_path):
    message = fails(gallery.main, '--work-dir', tmp_path, '--only', 'segmentation')
    assert 'no trained models for segmentation' in message
    assert '`make demo`' in message and '--tasks segmentation' in message


def test_pictures_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 2000, 3), dtype=np.uint8)
    gallery.save_small(Image.fromarray(noise), tmp_path / 'noise.jpg')
    assert (tmp_path / 'noise.jpg').stat().st_size <= gallery.MAX_BYTES
    with Image.open(tmp_path / 'noise.jpg') as picture:
        assert picture.size == (1200, 54)


@pytest.mark.parametrize('entry', gallery.ENTRIES, ids=NAMES)
def test_wrapped_commands_are_the_same_to_a_shell(entry):
    lines = gallery.wrapped(entry.command, width=70)
    assert max(map(len, lines.splitlines())) <= 74
    assert shlex.split(lines.replace('\\\n', '')) == shlex.split(entry.command)


def test_the_page_in_the_repository():
    page = (ROOT / 'docs/gallery.md').read_text()
    shown = re.findall(r'!\[.*\]\((images/gallery/(\w+)\.jpg)\)', page)
    assert [name for _, name in shown] == NAMES
    assert page.count('```\npython tools/') == len(NAMES)
    sizes = [(ROOT / 'docs' / path).stat().st_size for path, _ in shown]
    assert max(sizes) <= gallery.MAX_BYTES
    assert sum(sizes) < 2_000_000
    committed = {path.stem for path in (ROOT / 'docs/images/gallery').iterdir()}
    assert committed == set(NAMES)
