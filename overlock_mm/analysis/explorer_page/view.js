// The page: draws what contmix.js computes for the chosen block, group and token.
const data = JSON.parse(document.getElementById('data').textContent);
const SVG = 'http://www.w3.org/2000/svg';
const opened = new Map(); // blocks that have been unpacked, by index
const state = { block: 0, group: 0, row: 0, column: 0, layer: 'outlines' };

const element = (id) => document.getElementById(id);

function node(tag, attributes = {}, parent = null) {
  const made = tag.startsWith('svg:')
    ? document.createElementNS(SVG, tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent?.append(made);
  return made;
}

// ---- numbers and colours -------------------------------------------------------------------

const percent = (weight) => `${(100 * weight).toFixed(block().percentDecimals)}\u00a0%`;

function signed(value, decimals) {
  return value.toFixed(decimals).replace('-', '−');
}

function offset(steps) {
  return steps > 0 ? `+${steps}` : String(steps).replace('-', '−');
}

/** The colour at 0 to 1 of a scale that is given by evenly spaced [red, green, blue]. */
function colorAt(scale, position) {
  const place = Math.min(Math.max(position, 0), 1) * (scale.length - 1);
  const below = Math.min(Math.floor(place), scale.length - 2);
  const mixed = scale[below].map((channel, i) =>
    Math.round(channel + (place - below) * (scale[below + 1][i] - channel)));
  return `rgb(${mixed.join(' ')})`;
}

function gradient(scale) {
  return `linear-gradient(to right, ${scale.map((rgb) => `rgb(${rgb.join(' ')})`).join(', ')})`;
}

/** Where a value lies between the ends of a range; the middle if they are the same. */
const between = (value, [low, high]) => (high > low ? (value - low) / (high - low) : 0.5);

const range = (values) => [Math.min(...values), Math.max(...values)];

// ---- what is chosen ------------------------------------------------------------------------

function block() {
  if (!opened.has(state.block)) opened.set(state.block, openBlock(data.blocks[state.block]));
  return opened.get(state.block);
}

/** Numbers and geometry of the three maps for the chosen token. Boxes are in pixels. */
function compute() {
  const current = block();
  const { row, column, group } = state;
  const affinity = affinityOf(current, group, row, column);
  const maps = {};
  ['small', 'large'].forEach((name, which) => {
    const { size } = current.kernels[which];
    const values = kernelOf(current, which, affinity, group, row, column);
    const top = windowStart(row, current.height, size);
    const left = windowStart(column, current.width, size);
    maps[name] = {
      size,
      values,
      range: range(values),
      mark: 1 / (size * size),
      own: (row - top) * size + column - left,
      box: boxOf(current, left, top, left + size, top + size),
      boxes: Array.from(values, (_, i) => {
        const x = left + (i % size);
        const y = top + Math.floor(i / size);
        return boxOf(current, x, y, x + 1, y + 1);
      }),
      text: percent,
      where: (i) => {
        const y = top + Math.floor(i / size);
        const x = left + (i % size);
        return `row ${y}, column ${x} (${offset(y - row)}, ${offset(x - column)})`;
      },
    };
  });
  const side = current.regionRows.length;
  const limit = Math.max(...affinity.map(Math.abs));
  maps.affinity = {
    size: side,
    values: affinity,
    range: [-limit, limit],
    boxes: Array.from(affinity, (_, i) => {
      const [top, bottom] = current.regionRows[Math.floor(i / side)];
      const [left, right] = current.regionColumns[i % side];
      return boxOf(current, left, top, right, bottom);
    }),
    text: (value) => signed(value, current.affinityDecimals),
    where: (i) => `region row ${Math.floor(i / side)}, column ${i % side}`,
  };
  return maps;
}

function boxOf({ columnEdges, rowEdges }, left, top, right, bottom) {
  return [columnEdges[left], rowEdges[top], columnEdges[right], rowEdges[bottom]];
}

function choose(changes) {
  Object.assign(state, changes);
  const current = block();
  const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
  state.group = clamp(state.group, current.groups);
  state.row = clamp(state.row, current.height);
  state.column = clamp(state.column, current.width);
  draw();
}

/** Another block at the same place of the picture. */
function chooseBlock(index) {
  const old = block();
  const x = (old.columnEdges[state.column] + old.columnEdges[state.column + 1]) / 2;
  const y = (old.rowEdges[state.row] + old.rowEdges[state.row + 1]) / 2;
  state.block = (index + data.blocks.length) % data.blocks.length;
  fillGroups();
  choose(tokenAt(x, y));
}

function tokenAt(x, y) {
  const { columnEdges, rowEdges } = block();
  return {
    row: rowEdges.slice(1).filter((edge) => edge <= y).length,
    column: columnEdges.slice(1).filter((edge) => edge <= x).length,
  };
}

// ---- the three maps ------------------------------------------------------------------------

/** A heat map in a figure: its cells, colour scale and the line that reads out a number. */
class HeatMap {
  constructor(name, scale) {
    this.name = name;
    this.scale = scale;
    this.cells = [];
    this.inspected = null;
    const slot = document.querySelector(`#${name} .slot`);
    this.title = document.querySelector(`#${name} figcaption`);
    this.heading = this.title.textContent;
    this.svg = node('svg:svg', { tabindex: 0, role: 'application', class: 'heat' }, slot);
    this.svg.setAttribute('aria-roledescription', 'heat map');
    this.grid = node('svg:g', {}, this.svg);
    this.ownMark = node('svg:rect', { class: 'own', width: 1, height: 1 }, this.svg);
    this.cursor = node('svg:rect', { class: 'cursor', width: 1, height: 1 }, this.svg);
    const bar = node('div', { class: 'bar' }, slot);
    this.low = node('span', { class: 'low' }, bar);
    this.ramp = node('span', { class: 'ramp' }, bar);
    this.ramp.style.backgroundImage = gradient(scale);
    this.even = node('i', { class: 'mark', title: 'every weight the same' }, this.ramp);
    this.high = node('span', { class: 'high' }, bar);
    this.readout = node('p', { class: 'readout' }, slot);
    this.svg.addEventListener('pointermove', (event) => {
      const index = this.cells.indexOf(event.target);
      if (index >= 0) this.inspect(index);
    });
    this.svg.addEventListener('pointerleave', () => this.inspect(null));
    // Spoken while its own keys are used, and not with every step on the picture.
    this.svg.addEventListener('focus', () => this.readout.setAttribute('aria-live', 'polite'));
    this.svg.addEventListener('blur', () => {
      this.readout.removeAttribute('aria-live');
      this.inspect(null);
    });
    this.svg.addEventListener('keydown', (event) => this.onKey(event));
  }

  draw(map) {
    this.map = map;
    if (this.cells.length !== map.values.length) this.makeCells(map);
    map.values.forEach((value, i) => {
      this.cells[i].setAttribute('fill', colorAt(this.scale, between(value, map.range)));
    });
    [this.low.textContent, this.high.textContent] = map.range.map(map.text);
    this.even.hidden = map.mark === undefined;
    if (map.mark !== undefined) this.even.style.left = `${100 * between(map.mark, map.range)}%`;
    this.ownMark.style.display = map.own === undefined ? 'none' : '';
    if (map.own !== undefined) this.place(this.ownMark, map.own);
    const [least, most] = range(map.values).map(map.text);
    this.svg.setAttribute(
      'aria-label',
      `${this.title.textContent}: from ${least} to ${most}. Arrow keys read out its numbers.`,
    );
    this.inspect(null);
  }

  makeCells(map) {
    this.svg.setAttribute('viewBox', `0 0 ${map.size} ${map.size}`);
    this.title.textContent = `${this.heading}, ${map.size} × ${map.size}`;
    this.grid.replaceChildren();
    this.cells = Array.from(map.values, (_, i) => {
      const cell = node('svg:rect', { width: 1, height: 1 }, this.grid);
      this.place(cell, i);
      return cell;
    });
  }

  place(rectangle, index) {
    rectangle.setAttribute('x', index % this.map.size);
    rectangle.setAttribute('y', Math.floor(index / this.map.size));
  }

  /** Read out one number and show where it lies in the picture; null goes back to the largest. */
  inspect(index) {
    const { values, text, where } = this.map;
    this.inspected = index;
    this.cursor.style.display = index === null ? 'none' : '';
    const shown = index ?? values.indexOf(Math.max(...values));
    this.readout.replaceChildren();
    node('b', {}, this.readout).textContent = text(values[shown]);
    this.readout.append(` ${index === null ? 'is the largest: ' : ''}${where(shown)}`);
    if (index !== null) this.place(this.cursor, index);
    drawSpotlight(index === null ? null : this.map.boxes[index]);
  }

  onKey(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.map.size, ArrowDown: this.map.size };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const { size } = this.map;
    const from = this.inspected ?? this.map.own ?? Math.floor(this.map.values.length / 2);
    const to = this.inspected === null ? from : from + steps[event.key];
    const sameRow = Math.floor(to / size) === Math.floor(from / size);
    if (to < 0 || to >= size * size || (Math.abs(steps[event.key]) === 1 && !sameRow)) return;
    this.inspect(to);
  }
}

const heatMaps = {
  small: new HeatMap('small', data.colors.weight),
  large: new HeatMap('large', data.colors.weight),
  affinity: new HeatMap('affinity', data.colors.affinity),
};

// ---- the picture ---------------------------------------------------------------------------

const overlay = element('overlay');
const layers = {
  cells: node('svg:g', { class: 'cells' }, overlay),
  outlines: node('svg:g', {}, overlay),
  spotlight: node('svg:g', {}, overlay),
};

/** A rectangle that shows on any picture: a light or coloured line on a dark one. */
function outline(parent, [left, top, right, bottom], kind) {
  for (const part of ['halo', kind]) {
    const shape = { x: left, y: top, width: right - left, height: bottom - top };
    node('svg:rect', { ...shape, class: part }, parent);
  }
}

function drawOverlay(maps) {
  const current = block();
  const { row, column, layer } = state;
  layers.cells.replaceChildren();
  layers.outlines.replaceChildren();
  if (layer === 'outlines' || layer === 'affinity') drawRegions(maps.affinity, layer);
  else drawCells(maps[layer], data.colors.weight, maps[layer].boxes);
  if (layer === 'outlines' || layer === 'large') outline(layers.outlines, maps.large.box, 'large');
  if (layer === 'outlines' || layer === 'small') outline(layers.outlines, maps.small.box, 'small');
  outline(layers.outlines, boxOf(current, column, row, column + 1, row + 1), 'token');
}

function drawCells(map, scale, boxes) {
  map.values.forEach((value, i) => {
    const [x, y, right, bottom] = boxes[i];
    const fill = colorAt(scale, between(value, map.range));
    node('svg:rect', { x, y, width: right - x, height: bottom - y, fill }, layers.cells);
  });
}

/** Regions may overlap by a token; drawn side by side, each as a seventh of the picture. */
function drawRegions(map, layer) {
  const { width, height } = data.image;
  const side = map.size;
  const boxes = Array.from(map.values, (_, i) => {
    const [x, y] = [i % side, Math.floor(i / side)];
    return [x, y, x + 1, y + 1].map((n, axis) => (n * (axis % 2 ? height : width)) / side);
  });
  if (layer === 'affinity') drawCells(map, data.colors.affinity, boxes);
  for (let i = 1; i < side; i += 1) {
    const [x, y] = [(i * width) / side, (i * height) / side];
    node('svg:line', { x1: x, x2: x, y1: 0, y2: height, class: 'region' }, layers.outlines);
    node('svg:line', { x1: 0, x2: width, y1: y, y2: y, class: 'region' }, layers.outlines);
  }
}

function drawSpotlight(box) {
  layers.spotlight.replaceChildren();
  if (box) outline(layers.spotlight, box, 'spotlight');
}

function drawPlace() {
  const { row, column } = state;
  const [left, top, right, bottom] = boxOf(block(), column, row, column + 1, row + 1);
  element('place').textContent =
    `Token at row ${row}, column ${column}; pixels x ${left} to ${right - 1}, `
    + `y ${top} to ${bottom - 1}`;
}

// ---- all groups ----------------------------------------------------------------------------

function fillGroups() {
  const { groups } = block();
  element('group').replaceChildren();
  element('groups').replaceChildren();
  const perRow = Math.ceil(Math.sqrt(groups)); // about a square, beside the square maps
  element('groups').style.gridTemplateColumns = `repeat(${perRow}, minmax(0, 1fr))`;
  for (let i = 0; i < groups; i += 1) {
    node('option', { value: i }, element('group')).textContent = i;
    const button = node('button', { type: 'button', 'aria-label': `Group ${i}` }, element('groups'));
    node('canvas', { width: 1, height: 1 }, button);
    node('span', {}, button).textContent = i;
    button.addEventListener('click', () => choose({ group: i }));
  }
}

/** Thumbnails: each on its own scale, from its least to its largest weight. */
function drawGroups() {
  const current = block();
  const { row, column } = state;
  const { size } = current.kernels[1];
  [...element('groups').children].forEach((button, group) => {
    button.setAttribute('aria-pressed', group === state.group);
    const affinity = affinityOf(current, group, row, column);
    const values = kernelOf(current, 1, affinity, group, row, column);
    const canvas = button.firstElementChild;
    canvas.width = canvas.height = size;
    const context = canvas.getContext('2d');
    const ends = range(values);
    values.forEach((value, i) => {
      context.fillStyle = colorAt(data.colors.weight, between(value, ends));
      context.fillRect(i % size, Math.floor(i / size), 1, 1);
    });
  });
}

// ---- together ------------------------------------------------------------------------------

function draw() {
  const current = block();
  const maps = compute();
  element('block').value = state.block;
  element('group').value = state.group;
  element('size').textContent =
    `${current.height} × ${current.width} tokens, ${current.groups} groups`
    + (current.upsampled ? '; upsampled, as the map is smaller than the window' : '');
  drawPlace();
  drawOverlay(maps);
  Object.entries(heatMaps).forEach(([name, heatMap]) => heatMap.draw(maps[name]));
  drawGroups();
}

function onPictureKey(event) {
  const steps = event.shiftKey ? 4 : 1;
  const back = event.shiftKey ? -1 : 1;
  const { row, column, group } = state;
  const actions = {
    ArrowLeft: () => choose({ column: column - steps }),
    ArrowRight: () => choose({ column: column + steps }),
    ArrowUp: () => choose({ row: row - steps }),
    ArrowDown: () => choose({ row: row + steps }),
    g: () => choose({ group: (group + back + block().groups) % block().groups }),
    b: () => chooseBlock(state.block + back),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function onPictureClick(event) {
  const box = element('image').getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * data.image.width;
  const y = ((event.clientY - box.top) / box.height) * data.image.height;
  choose(tokenAt(x, y));
}

function start() {
  const { width, height, source } = data.image;
  element('image').src = source;
  element('picture').style.aspectRatio = `${width} / ${height}`;
  element('picture').style.width = `min(100%, ${(78 * width) / height}vh)`;
  overlay.setAttribute('viewBox', `0 0 ${width} ${height}`);
  data.blocks.forEach(({ name }, i) => {
    node('option', { value: i }, element('block')).textContent = name;
  });
  element('bound').textContent = data.bound;

  const picture = element('picture');
  picture.addEventListener('keydown', onPictureKey);
  picture.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    picture.setPointerCapture(event.pointerId);
    onPictureClick(event);
  });
  picture.addEventListener('pointermove', (event) => {
    if (picture.hasPointerCapture(event.pointerId)) onPictureClick(event);
  });
  element('block').addEventListener('change', (event) => chooseBlock(Number(event.target.value)));
  element('group').addEventListener('change', (event) => choose({ group: Number(event.target.value) }));
  document.querySelectorAll('input[name="layer"]').forEach((input) => {
    input.addEventListener('change', () => choose({ layer: input.value }));
  });

  fillGroups();
  choose(tokenAt(width / 2, height / 2));
}

start();
