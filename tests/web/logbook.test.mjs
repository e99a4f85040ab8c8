// The log lines of one job on the page: each once, ordered, and bounded.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Logbook } from "../../correlator/web/client/job_log.js";

const KEPT = 2000;

const line = (number) => ({
  event_id: number,
  at: new Date(1_758_553_933_000 + number).toISOString(),
  message: `line ${number}`,
});

const lines = (first, last) => Array.from({ length: last - first + 1 }, (_, i) => line(first + i));

test("the logbook stores the IDs of the present lines only", () => {
  const book = new Logbook(KEPT);
  for (let first = 1; first <= 100_000; first += 500) {
    assert.equal(book.add(lines(first, first + 499)), 500);
  }
  assert.deepEqual([book.lines.length, book.size, book.forgotten], [KEPT, KEPT, 100_000 - KEPT]);
  assert.equal(book.lines.at(-1).event_id, 100_000);
});

test("an evicted line is not added again, and is counted once", () => {
  const book = new Logbook(KEPT);
  book.add(lines(1, KEPT + 10));
  assert.equal(book.add(lines(1, 20)), 0);
  assert.deepEqual([book.lines[0].event_id, book.size, book.forgotten], [11, KEPT, 10]);
});

test("a line from history and stream is present once, and a late one is sorted in", () => {
  const book = new Logbook(KEPT);
  book.add([line(1), line(4)]);
  assert.equal(book.add([line(4), line(2)]), 1);
  assert.deepEqual(
    book.lines.map((one) => one.event_id),
    [1, 2, 4],
  );
});
