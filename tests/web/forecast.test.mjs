// How long a running job still needs: what `remaining` makes of a document as time passes.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { remaining } from "../../correlator/web/client.js";
import { delta, seeded, job as stored, synced } from "./fakes.mjs";

const START = Date.parse("2026-03-01T12:00:00Z");
const at = (seconds) => new Date(START + seconds * 1000).toISOString();

const CASES = JSON.parse(readFileSync(new URL("../data/remaining.json", import.meta.url), "utf8"));

/** A job with `percent` at second 100, whose end is forecast `p50` and `p90` seconds later. */
function job({ percent = 50, basis = "history", state = "on_track", p50 = 80, p90 = 120, ...more } = {}) {
  const forecast = { ends_at: { p50: at(100 + p50), p90: at(100 + p90) }, as_of: at(100), runs: 37, state };
  return { ...stored("x", 1), started_at: at(0), terminal: false, progress: { percent, basis }, forecast, ...more };
}

const left = (document, second, before) => remaining(document, START + second * 1000, before);

test("without a forecast nothing is known", () => {
  assert.equal(left(null, 100), null);
  assert.equal(left(job({ forecast: null }), 100), null);
  assert.equal(left(job({ forecast: undefined }), 100), null);
  assert.equal(left(job({ terminal: true }), 100), null);
});

test("the seconds that are left are counted down to zero", () => {
  assert.deepEqual(left(job(), 100), { p50: 80, p90: 120, percent: 50, state: "on_track" });
  assert.deepEqual([left(job(), 130).p50, left(job(), 130).p90], [50, 90]);
  assert.deepEqual([left(job(), 200).p50, left(job(), 200).p90], [0, 20]);
  assert.equal(left(job(), 1000).p90, 0);
});

for (const { name, job: document, now, expected } of CASES) {
  test(`what remains is what the Python client computes: ${name}`, () => {
    const found = remaining(document, Date.parse(now));
    if (expected === null) assert.equal(found, null);
    else for (const member of ["p50", "p90", "percent"]) assert.ok(Math.abs(found[member] - expected[member]) < 1e-3);
  });
}

test("percent does not fall below that of the result before", () => {
  assert.equal(left(job({ percent: 30 }), 100, left(job(), 150)).percent, left(job(), 150).percent);
  assert.equal(left(job({ percent: 30, state: "overdue" }), 100, { percent: 35 }).percent, 35);
});

test("percent never falls and is at most 99, whatever a new document says", () => {
  const random = seeded(11);
  for (let round = 0; round < 200; round++) {
    let [before, second, document] = [null, 100, job()];
    for (let n = 0; n < 40; n++) {
      second += random() * 10 - 0.5; // also a clock that is set back
      if (random() < 0.3) {
        const state = ["rough", "on_track", "late", "overdue"][Math.floor(random() * 4)];
        const p50 = random() * 100;
        document = job({ percent: random() * 99, state, p50, p90: p50 * (1 + random()) });
      }
      const now = left(document, second, before);
      assert.ok(now.percent >= Math.max(before?.percent ?? 0, document.progress.percent) && now.percent <= 99);
      assert.ok(now.p50 >= 0 && now.p90 >= now.p50);
      before = now;
    }
  }
});

test("a patch that ends the forecast leaves none", async () => {
  const { Socket, clock, all } = await synced([job({ rev: 3 })]);
  assert.equal(left(all.job("x"), 100).p50, 80);
  Socket.last.frame(delta(1, "x", 3, 4, { forecast: null, terminal: true }));
  await clock.pass(20);
  assert.equal(left(all.job("x"), 100), null);
});
