// Polling, where websockets and event streams are blocked.

import assert from "node:assert/strict";
import { test } from "node:test";
import { follow, job, unreachable, polling, world, EMPTY } from "./fakes.mjs";

test("after two failed event streams it polls every 5 s, IDs with ETags and filters by one page", async () => {
  const held = { x: job("x", 3, { external_ids: ["gui/1"], status: "running" }) };
  const answer = (path, { headers }) => {
    if (path.startsWith("/api/v1/jobs?")) return [200, { jobs: Object.values(held), next_cursor: null }];
    if (path !== "/api/v1/jobs/gui%2F1" || held.x === undefined) return [404, { status: 404 }];
    const etag = `"e1-${held.x.rev}"`;
    return headers["if-none-match"] === etag ? [304, undefined, { ETag: etag }] : [200, held.x, { ETag: etag }];
  };
  const what = [["gui/1", "later"], { status: ["running"], job_type: ["failover"], instance: ["dc1"] }];
  const { client, clock, fetch, followed } = await polling(what, { answer });
  await clock.pass(20);
  const [ids, filter] = followed;
  assert.deepEqual([ids.ids(), ids.update.unknown, ids.update.synced, filter.ids()], [["x"], ["later"], true, ["x"]]);
  assert.deepEqual([client.connection.state, client.connection.transport], ["live", "poll"]);
  const before = [ids.update, fetch.made.length, filter.job("x")];
  await clock.pass(4900);
  assert.equal(fetch.made.length, before[1]);
  await clock.pass(200);
  const round = fetch.made.slice(before[1]);
  assert.deepEqual(
    round.map((r) => [r.path, r.headers["if-none-match"]]),
    [
      ["/api/v1/jobs/gui%2F1", '"e1-3"'],
      ["/api/v1/jobs/later", undefined],
      ["/api/v1/jobs?limit=500&steps=1&status=running&job_type=failover&instance=dc1", undefined],
    ],
  );
  assert.deepEqual([ids.job("x"), filter.job("x")], [before[2], before[2]]); // nothing changed
  held.x = job("x", 1, { n: 1, external_ids: ["gui/1"] }); // another run of the daemon
  await clock.pass(5000);
  assert.deepEqual([ids.job("x").n, filter.job("x").n], [1, 1]);
  delete held.x;
  held.z = job("z", 2);
  await clock.pass(5000);
  assert.deepEqual(filter.ids(), ["z"]);
  ids.close();
  const later = fetch.made.length;
  await clock.pass(5000);
  assert.equal(fetch.made.length, later + 1);
});

test("an ID that is a dot segment, which an address loses, is polled by a parameter", async () => {
  const held = { "/api/v1/job?id=..": [200, job("x", 1, { external_ids: [".."] })], "/api/v1/jobs/...": [404, { status: 404 }] };
  const { clock, followed } = await polling([["..", "..."], { status: ["failed"] }], { answer: (path) => held[path] ?? EMPTY });
  await clock.pass(20);
  assert.deepEqual([followed[0].ids(), followed[0].update.unknown], [["x"], ["..."]]);
});

test("polling an ID applies the filter's other members", async () => {
  const answer = (path) => (path.startsWith("/api/v1/jobs/") ? [200, job("x", 3, { status: "failed", instance: "dc1" })] : EMPTY);
  const what = [{ status: ["running"] }, { status: ["failed"] }, { instance: ["dc2"] }, { instance: ["dc1"] }].map((more) => ({ jobs: ["x"], ...more }));
  const { clock, followed } = await polling(what, { answer });
  await clock.pass(20);
  assert.deepEqual(
    followed.map((f) => [f.ids(), f.update.synced]),
    [
      [[], true],
      [["x"], true],
      [[], true],
      [["x"], true],
    ],
  );
});

test("a new subscription is polled at once, and there is still one round every 5 s", async () => {
  const { client, clock, fetch } = await polling(["a"]);
  await clock.pass(20);
  for (const id of ["b", "c", "d"]) follow(client, id);
  const before = fetch.made.length;
  await clock.pass(20);
  const at = fetch.made.length;
  assert.ok(at - before <= 8, `${at - before} requests`);
  await clock.pass(20_000);
  assert.equal(fetch.made.length - at, 4 * 4);
});

test("a subscription made during a round is polled right after it", async () => {
  let hold = null;
  const answer = (path) => (path.endsWith("/slow") ? new Promise((done) => (hold = () => done([404, {}]))) : EMPTY);
  const { client, clock, fetch } = world({ transports: ["poll"], answer });
  follow(client, "slow");
  await clock.pass(10);
  const all = follow(client, {});
  await clock.pass(10);
  assert.equal(fetch.made.length, 1);
  hold();
  await clock.pass(100);
  hold();
  await clock.pass(100);
  assert.deepEqual([fetch.made.length, all.update.synced], [3, true]);
});

test("the first poll does not show a job of an interrupted snapshot that is gone", async () => {
  const answer = () => [200, { jobs: [job("y", 4)] }];
  const { client, clock, Socket } = world({ transports: ["websocket", "poll"], answer, random: () => 0 });
  const all = follow(client, {});
  await clock.pass(10);
  Socket.last.welcome();
  Socket.last.frame({ type: "snapshot", sub: 1, seq: 5, more: true, jobs: [job("x", 3)] });
  for (let n = 0; n < 3; n++) {
    Socket.last.end();
    await clock.pass(20);
  }
  assert.equal(client.connection.transport, "poll");
  assert.deepEqual(all.ids(), ["y"]);
});

test("if polling fails because the daemon is away, the websocket is tried first again", async () => {
  let up = true;
  const { client, clock, Socket } = await polling(["a"], { answer: () => (up ? EMPTY : unreachable()) });
  await clock.pass(20);
  assert.equal(client.connection.transport, "poll");
  const before = Socket.made.length;
  up = false;
  await clock.pass(5000);
  assert.equal(client.connection.state, "offline");
  for (let waited = 0; Socket.made.length === before; waited += 100) {
    assert.ok(waited < 60_000);
    await clock.pass(100);
  }
  Socket.last.welcome();
  assert.deepEqual([client.connection.state, client.connection.transport], ["live", "websocket"]);
});

test("a client that is closed during a trial of the websocket closes that too", async () => {
  const { client, clock, Socket, fetch } = await polling([{}]);
  await clock.pass(20);
  const before = Socket.made.length;
  await clock.pass(301_000);
  assert.equal(Socket.made.length, before + 1);
  client.close();
  assert.equal(Socket.last.closedWith, 1000);
  const calls = fetch.made.length;
  await clock.pass(600_000);
  assert.deepEqual([Socket.made.length, fetch.made.length], [before + 1, calls]);
});

test("a request without a response is aborted after 15 s", async () => {
  const answer = (_path, { signal }) =>
    new Promise((_, lost) => signal.addEventListener("abort", () => lost(signal.reason)));
  const { client, clock } = world({ transports: ["poll"], answer });
  follow(client, "a");
  await clock.pass(14_900);
  assert.equal(client.connection.state, "connecting");
  await clock.pass(200);
  assert.equal(client.connection.state, "offline");
});
