// Events: a job that becomes late or overdue.

import assert from "node:assert/strict";
import { test } from "node:test";
import { delta, follow, job, settle, streaming, synced, welcome } from "./fakes.mjs";

const late = (sub, seq, more = {}) => ({
  ...{ type: "event", sub, seq, event_id: null, kind: "job.late", job_id: "x", step_id: null, step_name: null },
  ...{ error: null, at: "2025-09-22T10:00:00.000000Z", ...more },
});

test("an event is passed to the subscriptions that it names, after the update", async () => {
  const { client, clock, Socket, all } = await synced([job("x", 1)]);
  const calls = [];
  const more = { onEvent: (event) => calls.push([event.kind, event.job_id, event.at.slice(0, 4)]) };
  client.subscribe("x", ({ job }) => calls.push(job?.rev), more);
  client.subscribe("z", () => {}, { onEvent: () => calls.push("another") });
  await settle();
  Socket.last.snapshot(2, [job("x", 1)]);
  Socket.last.snapshot(3, []);
  await clock.pass(20);
  calls.length = 0;
  Socket.last.frame(delta([1, 2], "x", 1, 101, {}), late([1, 2], 101));
  await clock.pass(20);
  assert.deepEqual(calls, [101, ["job.late", "x", "2025"]]);
  Socket.last.frame({ type: "status", source: "down", lag_seconds: 4 });
  await clock.pass(20);
  assert.deepEqual([calls.length, all.job("x").rev], [3, 101]); // another update, the event only once
});

test("a client resumes after the position of an event", async () => {
  const { clock, Socket } = await synced([job("x", 1)]);
  Socket.last.frame(late([1], 107));
  Socket.last.end();
  await clock.pass(3000);
  Socket.last.open();
  assert.deepEqual(Socket.last.sent[0].resume, { epoch: "e1", seq: 107 });
});

test("an event stream passes events on until it is closed", async () => {
  const { client, clock, Stream } = await streaming(["y"]);
  const kinds = [];
  const followed = follow(client, "x", { onEvent: (event) => kinds.push(event.kind) });
  const stream = Stream.last;
  stream.event(welcome());
  stream.event({ type: "snapshot", sub: 1, seq: 9, more: false, jobs: [job("x", 3)] });
  stream.event({ type: "synced", sub: 1, seq: 9, count: 1, unknown: [] });
  stream.named("event", late([1], 10, { kind: "job.overdue" }));
  await clock.pass(20);
  assert.deepEqual(kinds, ["job.overdue"]);
  followed.close();
  stream.named("event", late([1], 11));
  await clock.pass(20);
  assert.deepEqual(kinds, ["job.overdue"]);
});
