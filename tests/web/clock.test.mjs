// The daemon's time in the browser, estimated from messages with its current time.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Clock } from "../../correlator/web/page/times.js";
import { follow, job, polling, put, settle, streaming, synced, welcome, world } from "./fakes.mjs";

const at = (ms) => new Date(ms).toISOString();
const LIVE = { state: "live", source: "live", lag_seconds: 0, ahead_ms: 0 };

for (const ahead of [-7_200_000, 300]) {
  test(`a daemon's clock that is ${ahead} ms ahead is known from the welcome on`, async () => {
    const { client, clock, Socket } = world();
    follow(client, "a");
    await settle();
    assert.equal(client.connection.ahead_ms, null);
    Socket.last.open();
    Socket.last.frame({ type: "welcome", epoch: "e1", seq: 1, resumed: false, at: at(clock.time + ahead) });
    assert.equal(client.connection.ahead_ms, ahead);
  });
}

test("the message with the least latency sets ahead_ms; documents and log lines do not", async () => {
  const all = await synced([], { more: { onLog: () => {} } });
  const { clock, client, Socket } = all;
  const bookmark = (late) => Socket.last.frame({ type: "bookmark", seq: 101, at: at(clock.time + 5000 - late) });
  bookmark(400);
  bookmark(30);
  bookmark(2000);
  assert.equal(client.connection.ahead_ms, 4970);
  Socket.last.frame(put(1, job("x", 101, { updated_at: at(clock.time + 60_000) })));
  Socket.last.frame({ type: "log", sub: [1], job_id: "x", event_id: 1, at: at(clock.time + 60_000) });
  assert.equal(client.connection.ahead_ms, 4970);
  for (let n = 0; n < 16; n++) bookmark(900); // the browser's clock was set
  assert.equal(client.connection.ahead_ms, 4100);
});

test("the welcome of an event stream sets ahead_ms", async () => {
  const { client, clock, Stream } = await streaming([{}]);
  Stream.last.event(welcome({ at: at(clock.time + 700) }));
  assert.equal(client.connection.ahead_ms, 700);
});

test("a polling client reads the daemon's time from the Date header", async () => {
  const answer = () => [200, { jobs: [] }, { Date: new Date(90_000_000).toUTCString() }];
  const { client, clock } = await polling([{}], { answer });
  await clock.pass(10);
  assert.equal(client.connection.transport, "poll");
  assert.ok(Math.abs(90_000_000 - clock.time - client.connection.ahead_ms) < 10_000);
});

test("now follows the daemon's clock, and stops while the connection is not live", () => {
  const clock = new Clock();
  clock.connected({ ...LIVE, state: "connecting", ahead_ms: null }, 1000);
  assert.deepEqual([clock.now(1500), clock.asOf], [1500, null]);
  clock.connected({ ...LIVE, ahead_ms: 60_000 }, 2000);
  assert.deepEqual([clock.now(2500), clock.asOf], [62_500, null]);
  clock.documentsChanged(new Set(["a document that is hours old"]), 3000);
  assert.equal(clock.now(3000), 63_000);
  clock.connected({ ...LIVE, state: "offline", ahead_ms: 60_000 }, 4000);
  assert.deepEqual([clock.now(9000), clock.asOf], [64_000, 4000]);
  clock.connected({ ...LIVE, ahead_ms: 60_000 }, 10_000);
  assert.equal(clock.now(10_000), 70_000);
});
