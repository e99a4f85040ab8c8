// The lines of a log that the page holds: each once, ordered by time, without a hole, and bounded.

import assert from "node:assert/strict";
import { test } from "node:test";
import { LogWindow, MOST_CHARACTERS, MOST_LINES } from "../../correlator/web/page/log_feed.js";

const line = (id, { at = id, message = `line ${id}` } = {}) => ({
  event_id: id,
  at: new Date(1_758_553_933_000 + at).toISOString(),
  message,
  attrs: null,
});
const lines = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => line(first + i));
const ids = (window) => window.lines.map((one) => one.event_id);

test("a line of history and stream is present once, and the lines are in the order of time", () => {
  const window = new LogWindow();
  window.add([line(1), line(4)]);
  assert.equal(window.add([line(4), line(2), line(3, { at: 9 })]), 2);
  assert.deepEqual(ids(window), [1, 2, 4, 3]);
});

test("over a log of 100,000 lines the window holds the newest ones, and takes no line below them", () => {
  const window = new LogWindow();
  for (let first = 1; first <= 100_000; first += 500) {
    window.add(lines(first, first + 499));
    window.cutStart();
  }
  assert.deepEqual([window.lines.length, window.lowest, window.highest], [MOST_LINES, 100_001 - MOST_LINES, 100_000]);
  assert.equal(window.add([line(5)]), 0);
});

test("lines are evicted by their IDs, so that the rest is a range without a hole", () => {
  const window = new LogWindow(3);
  window.add([line(1, { at: 50 }), line(2, { at: 10 }), line(3), line(4), line(5)]);
  assert.equal(window.cutStart(), true);
  assert.deepEqual([window.lowest, ids(window)], [3, [3, 4, 5]]);
  window.lowest = 1;
  window.add([line(1), line(2)]);
  assert.equal(window.cutEnd(), true);
  assert.deepEqual([window.highest, ids(window)], [3, [1, 2, 3]]);
  assert.equal(window.cutEnd(), false);
});

test("huge lines are bounded by their characters", () => {
  const window = new LogWindow();
  for (let id = 1; id <= 40; id += 1) {
    window.add([line(id, { message: "x".repeat(1 << 20) })]);
    window.cutStart();
  }
  assert.equal(window.lines.length, MOST_CHARACTERS >> 20);
  assert.equal(window.highest, 40);
});
