// The order of the list, and the cost of a change.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Listing, OLDER } from "../../correlator/web/page/listing.js";
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

function listed(jobs, filter = {}, given = undefined) {
  const listing = new Listing();
  listing.update(new Map(jobs.map((each) => [each.job_id, each])), null, { ...ALL, ...filter }, NOW, given);
  return listing;
}

function ended(id, status, ago, took, more = {}) {
  const at = (seconds) => new Date(NOW - seconds * 1000).toISOString();
  const times = { started_at: at(ago), ended_at: took === null ? null : at(ago - took) };
  return { ...known(id, 1), status, terminal: took !== null, ...times, ...more };
}

test("an order by start, duration or forecast end; what has no such time comes last", () => {
  const ends_at = (seconds) => ({ ends_at: { p50: new Date(NOW + seconds * 1000).toISOString() } });
  const jobs = [
    ended("quick", "completed", 100, 10),
    ended("slow", "failed", 300, 200),
    ended("soon", "running", 50, null, { forecast: ends_at(5) }),
    ended("later", "running", 20, null, { forecast: ends_at(60) }),
    { ...known("pending", 1), status: "pending", terminal: false, started_at: null },
  ];
  const order = (sort) => listed(jobs, { sort }).shown;
  assert.deepEqual(order("-start"), ["later", "soon", "quick", "slow", "pending"]);
  assert.deepEqual(order("start"), ["slow", "quick", "soon", "later", "pending"]);
  assert.deepEqual(order("-duration"), ["slow", "soon", "later", "quick", "pending"]);
  assert.deepEqual(order("end"), ["soon", "later", "slow", "pending", "quick"]);
  assert.deepEqual(order("-end"), ["later", "soon", "slow", "pending", "quick"]);
});

const byEnd = (seconds, state = "on_track") => ({ forecast: { state, ends_at: { p50: new Date(NOW + seconds * 1000).toISOString() } } });

const LOST = { failure: { fingerprint: "lost" } };

test("stalled and overdue jobs come first, then new failures, older ones as one row, and running jobs by their end", () => {
  const jobs = [
    ended("done", "completed", 5, 1),
    { ...known("pending", 1), status: "pending", terminal: false, started_at: null },
    ended("no-forecast", "running", 1, null),
    ended("later", "running", 2, null, byEnd(600)),
    ended("sooner", "running", 9000, null, byEnd(60, "late")),
    ended("old-2", "failed", 80_000, 1, LOST),
    ended("old-1", "failed", 8000, 1, LOST),
    ended("old-0", "failed", 7000, 1),
    ended("long", "failed", 90_000, 89_000, LOST),
    ended("new", "failed", 100, 1, { failure: { fingerprint: "full" } }),
    ended("overdue", "running", 70_000, null, byEnd(1, "overdue")),
    ended("stalled", "running", 80_000, null, { stalled: true, ...byEnd(1, "overdue") }),
  ];
  const folded = listed(jobs);
  const first = ["stalled", "overdue", "new", "long", OLDER];
  const rest = ["sooner", "later", "no-forecast", "pending", "done"];
  assert.deepEqual(folded.shown, [...first, ...rest]);
  assert.deepEqual(folded.older, ["old-0", "old-1", "old-2"]);
  const unfolded = listed(jobs, { older: "1" });
  assert.deepEqual(unfolded.shown, [...first, "old-0", "old-1", ...rest]);
  assert.deepEqual([...unfolded.equal], [["old-1", 1]]); // the new one is counted apart
  assert.deepEqual(listed(jobs, { status: ["failed"] }).shown, ["new", "long", "old-0", "old-1", "old-2"]);
});

test("a running job keeps its place while the end of its forecast moves by less than a tenth of the time that is left", () => {
  const jobs = new Map([100, 200].map((seconds, n) => [`j${n}`, ended(`j${n}`, "running", 50 + n, null, byEnd(seconds))]));
  const listing = new Listing();
  listing.update(jobs, null, ALL, NOW);
  const moves = (id, seconds) => {
    jobs.set(id, ended(id, "running", 51, null, byEnd(seconds)));
    return listing.update(jobs, new Set([id]), ALL, NOW);
  };
  assert.equal(moves("j1", 185), false);
  assert.deepEqual(listing.shown, ["j0", "j1"]);
  assert.equal(moves("j1", 90), true);
  assert.deepEqual(listing.shown, ["j1", "j0"]);
});

test("of equal failures the newest is shown with their number, and seen or old ones do not come first", () => {
  const jobs = [
    ended("f1", "failed", 300, 1, LOST),
    ended("f2", "failed", 200, 1, LOST),
    ended("other", "failed", 250, 1, { failure: { fingerprint: "full" } }),
    ended("bare", "failed", 400, 1),
    ended("bare-too", "failed", 401, 1, { failure: { fingerprint: null } }),
    ended("run", "running", 100, null),
    ended("old", "failed", 90_000, 1, LOST),
  ];
  const all = listed(jobs);
  assert.deepEqual(all.shown, ["f2", "other", "bare", "bare-too", "run", "old"]);
  assert.deepEqual([...all.equal], [["f2", 1]]);
  assert.deepEqual(all.unseen, ["f2", "other", "f1", "bare", "bare-too"]);
  assert.deepEqual(listed(jobs, { status: ["failed"] }).shown, ["f2", "other", "f1", "bare", "bare-too", "old"]);
  const given = { seen: new Set(["f1", "f2", "other", "bare", "bare-too"]), found: new Map() };
  const marked = listed(jobs, {}, given);
  assert.deepEqual(marked.shown, ["run", "f2", "other", "f1", "bare", "bare-too", "old"]);
  assert.deepEqual([marked.unseen.length, marked.seenFailed.length], [0, 5]);
});

test("a job that the daemon has found is shown whatever its document says, and stalled ones can be chosen", () => {
  const jobs = [ended("a", "completed", 5, 1), ended("b", "running", 5, null, { stalled: true })];
  assert.deepEqual(listed(jobs, { q: "volume" }).shown, []);
  assert.deepEqual(listed(jobs, { q: "volume" }, { seen: new Set(), found: new Map([["a", jobs[0]]]) }).shown, ["a"]);
  const stalled = listed(jobs, { stalled: "1" });
  assert.deepEqual([stalled.shown, stalled.stalled], [["b"], 1]);
});

test("failures that are marked as seen are counted apart, also those that no row shows", () => {
  const failed = (id) => [id, { ...known(id, 1), status: "failed", terminal: true, started_at: new Date(NOW - 1000).toISOString() }];
  const jobs = new Map([failed("a"), failed("b"), failed("c")]);
  const listing = new Listing();
  const seen = { seen: new Set(["a", "b"]), found: new Map() };
  const running = { ...ALL, status: ["running"] };
  listing.update(jobs, null, running, NOW, seen);
  assert.deepEqual([listing.counts.get("failed"), listing.seen, listing.shown], [3, 2, []]);
  jobs.delete("a");
  listing.update(jobs, new Set(["a"]), running, NOW, seen);
  assert.deepEqual([listing.counts.get("failed"), listing.seen], [2, 1]);
});
