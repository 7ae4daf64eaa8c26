"""The tables of docs/recipes.md say what the configs say."""

import re
from ast import literal_eval

import pytest

from overlock_mm.utils.config import load_config
from tests.configs.test_initial_weights import FIGURES
from tests.configs.test_weight_decay import COUNTS
from tests.docs.pages import ROOT
from tests.official import TASK_NAMES, VARIANTS

PAGE = (ROOT / 'docs/recipes.md').read_text()
SECTION = re.compile(r'^## (.+?)\n(.*?)(?=^## |\Z)', re.MULTILINE | re.DOTALL)
SECTIONS = dict(SECTION.findall(PAGE))
CONFIG = re.compile(r'^`(configs/\S+\.py)`$', re.MULTILINE)


def table(section):
    """The rows of a section's table, each by the names of its columns."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith('|')]
    head, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def value_of(cfg, key):
    for part in key.split('.'):
        cfg = cfg[int(part)] if part.isdigit() else cfg[part]
    return cfg


ROWS = [
    (section, CONFIG.search(text)[1], row)
    for section, text in SECTIONS.items()
    if CONFIG.search(text)
    for row in table(section)
]


def test_every_task_has_its_table():
    assert {config.split('/')[1] for _, config, _ in ROWS} == set(TASK_NAMES.values())
    keys = [row['setting'] for _, _, row in ROWS if row['setting'].startswith('`')]
    assert len(keys) > 25


@pytest.mark.parametrize(
    ('config', 'row'),
    [(config, row) for _, config, row in ROWS if row['setting'].startswith('`')],
    ids=[f'{section}: {row["setting"]}' for section, _, row in ROWS if '`' in row['setting'][:1]],
)
def test_a_key_has_the_value_of_its_row(config, row):
    ours = literal_eval(row['ours'])
    assert value_of(load_config(str(ROOT / config)), row['setting'].strip('`')) == ours
    if 'published' in row:
        assert (literal_eval(row['published']) == ours) == (row['same'] == 'yes')


@pytest.mark.parametrize(('section', 'row'), [(s, row) for s, _, row in ROWS if 'same' in row])
def test_what_differs_has_a_reason(section, row):
    assert row['same'] in ('yes', 'no')
    assert row['why'] or row['same'] == 'yes'


def test_counts_without_decay_are_those_of_the_test_of_every_parameter():
    actual = {
        row['task']: {variant: int(row[variant.upper()]) for variant in VARIANTS}
        for row in table('Parameters without weight decay')
    }
    assert actual == {TASK_NAMES[task]: counts for task, counts in COUNTS.items()}


def test_initial_deviations_are_those_of_the_test_of_initial_weights():
    figures = {published: values for (published, _), values in FIGURES.items()}
    for row in table('Initial weights of necks and heads'):
        actual = (float(row['constructor']), float(row['`init_weights()`']))
        assert actual == figures[row['layer'].strip('`')]
