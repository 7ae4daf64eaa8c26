// The mathematics of ContMix for one token, from the queries, keys and parameters that the page
// holds. Arrays are flat and row-major; G groups, Cq query channels, S regions, K window size.
'use strict';

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function floatsOf(base64) {
  const view = new DataView(bytesOf(base64).buffer);
  return Float64Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** Numbers stored as 16-bit codes: each row has its smallest value and the step of its codes. */
function unpack({ low, step, codes }) {
  const lows = floatsOf(low);
  const steps = floatsOf(step);
  const bytes = bytesOf(codes);
  const values = new Float64Array(bytes.length / 2);
  const length = values.length / lows.length;
  for (let i = 0; i < values.length; i += 1) {
    const row = Math.floor(i / length);
    values[i] = lows[row] + steps[row] * (bytes[2 * i] + 256 * bytes[2 * i + 1]);
  }
  return values;
}

/** A block with its numbers unpacked. */
function openBlock(stored) {
  return {
    ...stored,
    height: stored.rowEdges.length - 1,
    width: stored.columnEdges.length - 1,
    query: unpack(stored.query),
    key: unpack(stored.key),
    kernels: stored.kernels.map(({ size, projWeight, projBias, rpb }) => ({
      size,
      projWeight: unpack(projWeight),
      projBias: unpack(projBias),
      rpb: unpack(rpb),
    })),
  };
}

/** First row (or column) of the window of token i: a window is shifted until it is in the map. */
function windowStart(i, mapSize, kernelSize) {
  return Math.min(Math.max(i - Math.floor(kernelSize / 2), 0), mapSize - kernelSize);
}

/** Scaled products of a token's query [Cq] with the keys [Cq, S] of its group. */
function affinityOf(block, group, row, column) {
  const { regions, queryChannels, query, key, height, width, scale } = block;
  const affinity = new Float64Array(regions);
  for (let c = 0; c < queryChannels; c += 1) {
    const channel = group * queryChannels + c;
    const q = query[(channel * height + row) * width + column] * scale;
    for (let s = 0; s < regions; s += 1) affinity[s] += q * key[channel * regions + s];
  }
  return affinity;
}

/** Weights [K * K] of the small (which = 0) or large (1) kernel; they sum to one. */
function kernelOf(block, which, affinity, group, row, column) {
  const { size, projWeight, projBias, rpb } = block.kernels[which];
  const side = 2 * size - 1;
  // The bias of the neighbour at row r seen from row i is row r - i + K - 1 of the table.
  const biasRow = windowStart(row, block.height, size) - row + size - 1;
  const biasColumn = windowStart(column, block.width, size) - column + size - 1;
  const logits = projBias.map((bias, tap) => {
    const tapRow = Math.floor(tap / size);
    let logit = bias + rpb[(group * side + biasRow + tapRow) * side + biasColumn + (tap % size)];
    for (let s = 0; s < affinity.length; s += 1) {
      logit += projWeight[tap * affinity.length + s] * affinity[s];
    }
    return logit;
  });
  const largest = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - largest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}
