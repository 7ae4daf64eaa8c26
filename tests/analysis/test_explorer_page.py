"""The explorer's page in a browser: what a user clicks and types, and what then stands there."""

import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from overlock_mm import OverLoCK
from overlock_mm.analysis import contmix_kernels, explorer, project_contmix
from overlock_mm.analysis.contmix_kernels import contmix_blocks
from tests.models.helpers import TINY, randomize_parameters

playwright = pytest.importorskip(
    'playwright.sync_api', reason='playwright, which steers the browser, is not installed'
)
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium on this machine')

WIDTH, HEIGHT = 232, 216
LAST_ROW, LAST_COLUMN = 13, 14  # at stride 16
#: Selectors of all kinds of text.
TEXTS = [
    'h1',
    'header p',
    '#place',
    '#keys',
    '#bound',
    '.map .readout',
    '.map figcaption',
    '.bar',
    '.segments span',
    '.segments input:checked + span',
    '.groups button[aria-pressed=false]',
    '.groups button[aria-pressed=true]',
]


@pytest.fixture(scope='module')
def model():
    model = randomize_parameters(OverLoCK(TINY)).eval()
    for module in contmix_blocks(model).values():
        nn.init.normal_(module.kernel_proj.weight, std=0.2)
        nn.init.normal_(module.rpb_small, std=0.5)
    return model


@pytest.fixture(scope='module')
def image():
    torch.manual_seed(3)
    return torch.randn(3, HEIGHT, WIDTH)


@pytest.fixture(scope='module')
def expect(model, image):
    """What Python computes for a block and a place."""
    return lambda block, position: contmix_kernels(model, image, block, position)


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            args=['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
        )
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def projections(model, image):
    return project_contmix(model, image)


@pytest.fixture(scope='module')
def address(projections, tmp_path_factory):
    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    html, _ = explorer.build_page(picture, projections, 'noise.png', 'tiny')
    path = tmp_path_factory.mktemp('explorer') / 'explorer.html'
    path.write_text(html, encoding='utf-8')
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    """The page, freshly opened; at the end it has loaded nothing and complained of nothing."""
    page = browser.new_page(viewport={'width': 1200, 'height': 1000})
    requests, complaints = [], []
    page.on('request', lambda request: requests.append(request.url))
    page.on('console', lambda message: complaints.append(message.text))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.goto(address)
    yield page
    assert [url for url in requests if not url.startswith('data:')] == [address]
    assert complaints == []
    page.close()


def click(page, x, y):
    """Click a pixel of the image."""
    box = page.locator('#picture').bounding_box()
    scale = box['width'] / WIDTH
    page.mouse.click(box['x'] + (x + 0.5) * scale, box['y'] + (y + 0.5) * scale)


def token(page):
    """Row and column that the page names."""
    return tuple(int(n) for n in re.findall(r'(?:row|column) (\d+)', place(page)))


def place(page):
    return page.inner_text('#place')


def numbers(page, name):
    """All numbers of a map, as a pointer over its cells reads them out."""
    texts = page.evaluate(
        """(name) => [...document.querySelectorAll(`#${name} g rect`)].map((cell) => {
             cell.dispatchEvent(new PointerEvent('pointermove', { bubbles: true }));
             return document.querySelector(`#${name} .readout b`).textContent;
           })""",
        name,
    )
    page.dispatch_event(f'#{name} svg', 'pointerleave')
    return np.array([float(t.replace('−', '-').removesuffix('%').strip()) for t in texts])


def decimals(page, name):
    text = page.inner_text(f'#{name} .readout b').removesuffix('%').strip()
    return len(text.partition('.')[2])


@pytest.fixture
def check_shown(page, projections):
    """Demand of every number on the page that it is Python's to the last digit shown.

    That is half a unit of it and the error, at most another half, of storing with 16 bits.
    """

    def check(at_token, group):
        packed = explorer.pack_block(projections[at_token.block])
        maps = {
            'small': (100 * at_token.kernels[0][group], 100 * packed.weight_error),
            'large': (100 * at_token.kernels[1][group], 100 * packed.weight_error),
            'affinity': (at_token.affinity[group], packed.affinity_error),
        }
        for name, (exact, error) in maps.items():
            shown = numbers(page, name)
            unit = 10.0 ** -decimals(page, name)
            assert error <= unit / 2 <= 0.01 * exact.abs().max()
            assert np.abs(shown - exact.flatten().numpy()).max() <= unit / 2 + error + 1e-5

    return check


def rectangle(page, selector):
    """Left, top, right and bottom of a rectangle over the picture."""
    x, y, width, height = (
        float(page.get_attribute(selector, name)) for name in ('x', 'y', 'width', 'height')
    )
    return x, y, x + width, y + height


@pytest.mark.parametrize('position', [(3, 2), (120, 100), (WIDTH - 1, HEIGHT - 1)], ids=str)
def test_a_click_shows_the_kernels_of_the_place(page, expect, check_shown, position):
    click(page, *position)
    at_token = expect('focus3.0', position)
    assert token(page) == at_token.token
    check_shown(at_token, group=0)
    assert rectangle(page, '#overlay .token') == at_token.token_box
    assert rectangle(page, '#overlay .small') == at_token.window_boxes[0]
    assert rectangle(page, '#overlay .large') == at_token.window_boxes[1]


def test_choosing_block_and_group(page, expect, check_shown):
    click(page, 200, 40)
    page.select_option('#block', label='focus4.1')
    page.select_option('#group', '3')
    at_token = expect('focus4.1', (200, 40))
    assert token(page) == at_token.token
    assert '7 × 8 tokens, 4 groups' in page.inner_text('#size')
    check_shown(at_token, group=3)
    page.get_by_role('button', name='Group 2').click()
    assert page.input_value('#group') == '2'
    assert page.get_attribute('#groups button:nth-child(3)', 'aria-pressed') == 'true'
    check_shown(at_token, group=2)


def test_keys_on_the_picture(page, expect, check_shown):
    click(page, 3, 2)  # which also gives it the focus
    for key, expected in (
        ('ArrowRight', (0, 1)),
        ('ArrowDown', (1, 1)),
        ('Shift+ArrowDown', (5, 1)),
        ('ArrowLeft', (5, 0)),
        ('ArrowLeft', (5, 0)),
        ('ArrowUp', (4, 0)),
        ('Shift+ArrowUp', (0, 0)),
        ('Shift+ArrowUp', (0, 0)),
    ):
        page.keyboard.press(key)
        assert token(page) == expected, key
    for _ in range(5):
        page.keyboard.press('Shift+ArrowRight')
        page.keyboard.press('Shift+ArrowDown')
    assert token(page) == (LAST_ROW, LAST_COLUMN)
    page.keyboard.press('g')
    page.keyboard.press('b')
    assert (page.input_value('#group'), page.input_value('#block')) == ('1', '1')
    check_shown(expect('focus3.1', (WIDTH - 1, HEIGHT - 1)), group=1)
    page.keyboard.press('Shift+g')
    page.keyboard.press('Shift+g')
    page.keyboard.press('Shift+b')
    page.keyboard.press('Shift+b')
    assert (page.input_value('#group'), page.input_value('#block')) == ('3', '3')


def test_everything_is_reached_by_the_keyboard_alone(page):
    reached = []
    for _ in range(11):
        page.keyboard.press('Tab')
        reached.append(
            page.evaluate(
                """() => document.activeElement.id || document.activeElement.name
                   || document.activeElement.closest('figure').id
                   || document.activeElement.getAttribute('aria-label')"""
            )
        )
    expected = ['picture', 'layer', 'block', 'group', 'small', 'large', 'affinity']
    assert reached == [*expected, 'Group 0', 'Group 1', 'Group 2', 'Group 3']
    page.focus('#block')
    page.keyboard.press('ArrowDown')
    assert page.input_value('#block') == '1'
    page.focus('#groups button:nth-child(2)')
    page.keyboard.press('Enter')
    assert page.input_value('#group') == '1'


def test_a_number_is_read_out_and_shown_in_the_picture(page, expect):
    click(page, 120, 100)
    at_token = expect('focus3.0', (120, 100))
    page.focus('#large svg')
    assert 'is the largest' in page.inner_text('#large .readout')
    page.keyboard.press('ArrowUp')  # begins at the token itself
    page.keyboard.press('ArrowUp')
    page.keyboard.press('ArrowLeft')
    row, column = at_token.token
    readout = page.inner_text('#large .readout')
    assert f'row {row - 1}, column {column - 1} (−1, −1)' in readout
    left, top = at_token.windows[1][:2]
    weight = 100 * at_token.kernels[1][0, row - 1 - top, column - 1 - left]
    assert abs(float(readout.split()[0]) - weight) <= 0.01
    token_box = at_token.token_box
    spotlight = rectangle(page, '#overlay .spotlight')
    assert spotlight[2:] == token_box[:2]
    page.focus('#affinity svg')
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowUp')
    assert rectangle(page, '#overlay .spotlight') == at_token.region_boxes[2 * 7 + 3]
    page.locator('#small g rect').nth(24).hover()
    left, top, right, bottom = at_token.windows[0]
    assert f'row {bottom - 1}, column {right - 1} (+2, +2)' in page.inner_text('#small .readout')


def test_scales_name_the_ends(page, expect):
    click(page, 120, 100)
    at_token = expect('focus3.0', (120, 100))
    for name, kernel in zip(('small', 'large'), at_token.kernels, strict=True):
        low, high = (
            float(page.inner_text(f'#{name} .{end}').split()[0]) for end in ('low', 'high')
        )
        assert low == pytest.approx(100 * kernel[0].min().item(), abs=0.01)
        assert high == pytest.approx(100 * kernel[0].max().item(), abs=0.01)
        label = page.get_attribute(f'#{name} svg', 'aria-label')
        assert page.inner_text(f'#{name} .high') in label
    low, high = (page.inner_text(f'#affinity .{end}') for end in ('low', 'high'))
    assert low == f'−{high}'


@pytest.mark.parametrize(('layer', 'cells'), [('small', 25), ('large', 169), ('affinity', 49)])
def test_layers_over_the_picture(page, layer, cells):
    assert page.locator('#overlay .cells rect').count() == 0
    page.check(f'input[value={layer}]', force=True)
    assert page.locator('#overlay .cells rect').count() == cells
    shown = page.eval_on_selector_all(
        '#overlay .cells rect', 'all => all.map((r) => r.attributes.fill.value)'
    )
    in_map = page.eval_on_selector_all(
        f'#{layer} g rect', 'all => all.map((r) => r.attributes.fill.value)'
    )
    assert shown == in_map


def luminance(color):
    red, green, blue = (int(n) / 255 for n in re.findall(r'\d+', color)[:3])
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast_in_both_schemes(page, scheme):
    """Texts have at least the contrast of 4.5 that WCAG 2 asks for."""
    page.emulate_media(color_scheme=scheme)
    pairs = page.evaluate(
        """(selectors) => selectors.map((selector) => {
             let behind = document.querySelector(selector);
             const color = getComputedStyle(behind).color;
             while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') {
               behind = behind.parentElement;
             }
             return [selector, color, getComputedStyle(behind).backgroundColor];
           })""",
        TEXTS,
    )
    for selector, color, background in pairs:
        one, other = sorted((luminance(color), luminance(background)))
        assert (other + 0.05) / (one + 0.05) >= 4.5, selector
    assert (luminance(pairs[0][2]) > 0.5) == (scheme == 'light')


def test_a_narrow_window_does_not_scroll_sideways(page):
    page.set_viewport_size({'width': 360, 'height': 700})
    assert page.evaluate('document.documentElement.scrollWidth') <= 360
    click(page, 3, 2)
    assert token(page) == (0, 0)
