// What the element shows of a job, of a connection and of an error.

import assert from "node:assert/strict";
import { test } from "node:test";
import { CorrelatorProgress, appearance } from "../../correlator/web/progress.js";

const NOW = Date.parse("2026-03-01T14:28:30Z");
const LIVE = { state: "live", error: null };

function shown(members = {}, { connection = LIVE, asOf = null, percent = 40, evicted = false } = {}) {
  const job = {
    job_id: "x",
    status: "running",
    terminal: false,
    current_step: "copy",
    progress: { percent, basis: "steps", steps_done: 1, steps_seen: 3, steps_failed: 0 },
    last_event_at: new Date(NOW).toISOString(),
    metadata: { vm_name: "vm" },
    ...members,
  };
  const update = { job: evicted ? null : job, synced: true, connection };
  return appearance(update, job, { id: "id", now: NOW, asOf, left: null, percent });
}

test("before its job exists, the element waits", () => {
  const at = { id: "id", now: NOW, asOf: null, left: null, percent: null };
  assert.equal(appearance(null, null, at).status, "Connecting");
  const waiting = appearance({ job: null, synced: true, connection: LIVE }, null, at);
  assert.deepEqual([waiting.kind, waiting.name, waiting.status], ["waiting", "id", "Waiting for the job"]);
});

test("a status that is not known is a text and never the name of a part", () => {
  const { kind, status } = shown({ status: "bad part" });
  assert.deepEqual([kind, status], ["waiting", "bad part"]);
});

test("the first line of an error is apart from the others, and from the note that it is cut", () => {
  const failed = { status: "failed", terminal: true };
  assert.deepEqual(lines(shown({ ...failed, error: "one" })), ["one", ""]);
  assert.deepEqual(lines(shown({ ...failed, error: "one\ntwo\n  three\n" })), ["one", "two\n  three"]);
  assert.deepEqual(lines(shown({ ...failed, error: "one", error_cut: 20_000 })), ["one", "cut: 20 kB in full"]);
  assert.deepEqual(lines(shown({ ...failed, error: null })), ["", ""]);
});

test("a failed job says its sentence, and has its error below if that says more", () => {
  const failed = { status: "failed", terminal: true, failure: { certainty: "stated", step: "copy", text: "disk full" } };
  assert.deepEqual(lines(shown({ ...failed, error: "disk full" })), ["Step copy: disk full.", ""]);
  assert.deepEqual(lines(shown({ ...failed, error: "disk full\n at x" })), ["Step copy: disk full.", "disk full\n at x"]);
  assert.deepEqual(lines(shown({ ...failed, error: "a: disk full" })), ["Step copy: disk full.", "a: disk full"]);
  const apart = { ...failed, steps: { 1: { seq: 1, name: "copy" } }, failure: { certainty: "apart", text: "lost" } };
  assert.deepEqual(lines(shown({ ...apart, error: "lost." })), ["The job reports: lost. The last step was copy.", ""]);
});

const lines = ({ error, details }) => [error, details];

test("doubts about a running job are named, and none about an ended one", () => {
  const offline = { connection: { state: "offline", error: "refused" }, asOf: NOW };
  assert.match(shown({}, offline).notice, /^Offline: as of \d\d:\d\d:\d\d$/);
  assert.equal(shown({}, { ...offline, asOf: null }).notice, "Offline: refused");
  assert.equal(shown({}, { connection: { state: "refused", error: "a token is needed" } }).notice, "Refused: a token is needed");
  assert.equal(shown({}, { evicted: true }).notice, "Last known state");
  assert.match(shown({ stalled: true }).notice, /^Stalled, silent for/);
  assert.equal(shown({ status: "completed", terminal: true }, { ...offline, evicted: true }).notice, "");
});

test("a job that completed with failed steps says so, and an ended one counts its steps", () => {
  const progress = { percent: 100, steps_done: 2, steps_seen: 3, steps_failed: 1 };
  const { status, step } = shown({ status: "completed", terminal: true, progress }, { percent: 100 });
  assert.deepEqual([status, step], ["Completed with 1 failed step", "2 of 3 steps done"]);
});

test("where there are no elements, the module can be imported", () => {
  assert.equal(typeof CorrelatorProgress, "function");
});
