// The order of the list, and the cost of a change.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Listing } from "../../correlator/web/page/listing.js";
import { seeded, synced, job as known, put } from "./fakes.mjs";

const ALL = Object.freeze({ q: "", status: [], forecast: [], type: "", when: "all" });
const NOW = Date.parse("2026-03-01T12:00:00Z");
const STATUSES = ["failed", "running", "pending", "completed", "cancelled"];

function job(random, id, reads) {
  const at = random() < 0.1 ? null : new Date(NOW - Math.floor(random() * 50) * 1000).toISOString();
  const document = { job_id: id, job_type: random() < 0.5 ? "a" : "b", terminal: false, started_at: at };
  const status = STATUSES[Math.floor(random() * 5)];
  return Object.defineProperty(document, "status", { get: () => (reads.count++, status), enumerable: true });
}

test("a list that is updated change by change equals a new one", () => {
  const random = seeded(5);
  const reads = { count: 0 };
  for (const filter of [ALL, { ...ALL, status: ["running", "failed"] }, { ...ALL, type: "a" }]) {
    const jobs = new Map();
    const kept = new Listing();
    kept.update(jobs, null, filter, NOW);
    for (let round = 0; round < 300; round++) {
      const changed = new Set();
      for (let n = 0; n < 1 + random() * 4; n++) {
        const id = `j${Math.floor(random() * 60)}`;
        changed.add(id);
        if (random() < 0.3) jobs.delete(id);
        else jobs.set(id, job(random, id, reads));
      }
      kept.update(jobs, changed, filter, NOW);
      const anew = new Listing();
      anew.update(jobs, null, filter, NOW);
      assert.deepEqual(kept.shown, anew.shown);
      assert.deepEqual(new Map([...kept.counts].sort()), new Map([...anew.counts].sort()));
      assert.deepEqual(kept.types, anew.types);
    }
  }
});

test("a change reads only the jobs that changed, whatever their number", () => {
  const counts = [100, 20_000].map((count) => {
    const random = seeded(7);
    const reads = { count: 0 };
    const jobs = new Map();
    for (let n = 0; n < count; n++) jobs.set(`j${n}`, job(random, `j${n}`, reads));
    const listing = new Listing();
    listing.update(jobs, null, ALL, NOW);
    reads.count = 0;
    jobs.set("j3", job(random, "j3", reads));
    assert.equal(listing.update(jobs, new Set(["j3"]), ALL, NOW), true);
    return reads.count;
  });
  assert.deepEqual(counts, [counts[0], counts[0]]);
  assert.ok(counts[0] > 0);
});

test("an update of the client reads only the jobs that changed", async () => {
  const counts = [];
  for (const count of [100, 5000]) {
    const jobs = Array.from({ length: count }, (_, n) => known(`j${n}`, 5, { started_at: `2026-03-01T10:00:00.${n}Z` }));
    const all = await synced(jobs);
    let reads = 0;
    for (const each of all.all.update.jobs.values()) {
      const at = each.started_at;
      Object.defineProperty(each, "started_at", { get: () => (reads++, at) });
    }
    all.Socket.last.frame(put(1, known("j3", 200, { started_at: "2026-03-01T11:00:00Z" })));
    await all.clock.pass(20);
    assert.equal(all.all.update.job.job_id, "j3");
    counts.push(reads);
  }
  assert.equal(counts[0], counts[1]);
});

test("jobs are counted and filtered by the state of their forecast", () => {
  const jobs = new Map(
    ["late", "overdue", "late", null].map((state, n) => {
      const forecast = state === null ? null : { state };
      return [`j${n}`, { ...known(`j${n}`, 1), terminal: false, forecast }];
    }),
  );
  const listing = new Listing();
  const late = { ...ALL, forecast: ["late"] };
  listing.update(jobs, null, late, NOW);
  assert.deepEqual(listing.shown, ["j0", "j2"]);
  assert.deepEqual([...listing.forecasts], [["late", 2], ["overdue", 1]]);
  jobs.set("j0", { ...jobs.get("j0"), forecast: { state: "overdue" } });
  assert.equal(listing.update(jobs, new Set(["j0"]), late, NOW), true);
  assert.deepEqual(listing.shown, ["j2"]);
  assert.deepEqual(new Map([...listing.forecasts].sort()), new Map([["late", 1], ["overdue", 2]]));
});
