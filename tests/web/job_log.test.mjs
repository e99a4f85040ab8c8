// The log of a job: history and live lines, each once.

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { JobLog, Logbook } from "../../correlator/web/client/job_log.js";
import { requests, seeded, settle, sockets } from "./fakes.mjs";

const were = { fetch: globalThis.fetch, WebSocket: globalThis.WebSocket };
const closed = [];

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }));

afterEach(() => {
  for (const log of closed.splice(0)) log.close();
  mock.timers.reset();
  Object.assign(globalThis, were);
});

let servers = 0;

/** A log of the job "n" on a connection of its own, which is welcomed; `pages` by their cursor. */
async function opened(pages, options = {}) {
  const Socket = sockets();
  const answers = (path) => pages[new URL(path, "http://x").searchParams.get("after") ?? ""] ?? [404];
  Object.assign(globalThis, { WebSocket: Socket, fetch: requests(answers) });
  const log = new JobLog("n", { url: `http://log-${++servers}.test`, token: "t", ...options }, () => {});
  closed.push(log);
  await settle();
  Socket.last.welcome();
  return { log, Socket, made: globalThis.fetch.made };
}

const line = (event_id) => ({ event_id, level: "INFO", step_id: null, message: `m${event_id}`, attrs: {}, at: at(event_id) });
const at = (event_id) => `2026-03-01T00:00:${String(event_id).padStart(2, "0")}.000000Z`;
const page = (ids, next_after, more = false) => [200, { events: ids.map(line), next_after, more }];
const live = (job_id, event_id) => ({ type: "log", sub: [1], job_id, ...line(event_id) });
const job = (job_id, started_at = at(0)) => ({ job_id, rev: 1, status: "running", external_ids: ["n"], started_at });
const ids = (log) => log.state.lines.map((each) => each.event_id);

/** Time in which the client calls back, which it does at most once in 16 ms. */
async function pass(ms = 20) {
  mock.timers.tick(ms);
  await settle();
}

test("history and live lines are merged, and the history is read to its end", async () => {
  const { log, Socket, made } = await opened({ "": page([1, 2], "2", true), 2: page([3], "3") });
  assert.equal(made.length, 0); // no job has the ID yet
  Socket.last.snapshot(1, [job("a")]);
  Socket.last.frame(live("a", 3), live("b", 9), live("a", 4));
  await pass();
  assert.deepEqual([ids(log), log.state.loaded, log.state.error], [[1, 2, 3, 4], true, null]);
  assert.deepEqual([...new Set(log.state.lines.map((each) => each.job_id))], ["a"]);
  assert.equal(made[0].headers.authorization, "Bearer t");
  assert.equal(made[0].path, "/api/v1/jobs/a/events?limit=1000&level=INFO");
});

test("only the newest lines are kept, and lines that were dropped are read again", async () => {
  const { log, Socket, made } = await opened({ "": page([1, 2, 3, 4], "4"), 4: page([5, 6], "6") }, { limit: 3 });
  Socket.last.snapshot(1, [job("a")]);
  await pass();
  assert.deepEqual([ids(log), log.state.older], [[2, 3, 4], 1]);
  Socket.last.frame({ type: "log", sub: [1], dropped: 2 });
  await pass();
  assert.deepEqual([ids(log), log.state.older, made.length], [[4, 5, 6], 3, 2]);
});

test("a newer job with the same ID has a log of its own", async () => {
  const { log, Socket } = await opened({ "": page([1], "1") });
  Socket.last.snapshot(1, [job("a")]);
  await pass();
  Socket.last.frame({ type: "put", sub: [1], seq: 101, job_id: "b", rev: 2, job: job("b", at(5)) });
  Socket.last.frame(live("a", 8), live("b", 7));
  await pass();
  assert.deepEqual(
    log.state.lines.map((each) => [each.job_id, each.event_id]),
    [["b", 1], ["b", 7]],
  );
});

test("a history that cannot be read is an error until it can be", async () => {
  const pages = { "": [503] };
  const { log, Socket } = await opened(pages);
  Socket.last.snapshot(1, [job("a")]);
  await pass();
  assert.match(log.state.error, /HTTP status 503/);
  assert.equal(log.state.loaded, false);
  pages[""] = page([1], "1");
  await pass(5000);
  assert.deepEqual([ids(log), log.state.loaded, log.state.error], [[1], true, null]);
});

test("a logbook has the newest of all lines, each once and in the order of time, and counts those that it evicted", () => {
  const random = seeded(7);
  const book = new Logbook(30);
  let [kept, evicted, count] = [[], 0, 0];
  for (let first = 1; first < 2000; first += 20) {
    const given = Array.from({ length: 40 }, (_, n) => first + n).filter(() => random() < 0.7);
    const added = given.filter((id) => id > evicted && !kept.includes(id));
    const all = [...kept, ...added].sort((a, b) => a - b);
    const gone = Math.max(0, all.length - 30);
    [kept, evicted, count] = [all.slice(gone), all[gone - 1] ?? evicted, count + gone];
    const lines = given.sort(() => random() - 0.5).map((id) => ({ event_id: id, at: new Date(1_758_553_933_000 + id).toISOString() }));
    assert.equal(book.add(lines), added.length);
    assert.deepEqual(book.lines.map((each) => each.event_id), kept);
    assert.deepEqual([book.size, book.forgotten], [kept.length, count]);
  }
});

test("lines that may be missing are an error with the daemon's reason", async () => {
  const [status, incomplete] = page([1, 2], "2", true);
  const first = [status, { ...incomplete, complete: false, reason: "times are unread" }];
  const { log, Socket } = await opened({ "": first, 2: page([3], "3") });
  Socket.last.snapshot(1, [job("a")]);
  await pass();
  assert.deepEqual([ids(log), log.state.loaded, log.state.error], [[1, 2, 3], true, "times are unread"]);
});
