// The documents that result from the messages of a connection.

import assert from "node:assert/strict";
import { test } from "node:test";
import { merge } from "../../correlator/web/client.js";
import { delta, follow, job, lose, put, settle, synced, world } from "./fakes.mjs";

// RFC 7386, appendix A: original, patch, result.
const APPENDIX = [
  [{ a: "b" }, { a: "c" }, { a: "c" }],
  [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }],
  [{ a: "b" }, { a: null }, {}],
  [{ a: "b", b: "c" }, { a: null }, { b: "c" }],
  [{ a: ["b"] }, { a: "c" }, { a: "c" }],
  [{ a: "c" }, { a: ["b"] }, { a: ["b"] }],
  [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }],
  [{ a: [{ b: "c" }] }, { a: [1] }, { a: [1] }],
  [
    ["a", "b"],
    ["c", "d"],
    ["c", "d"],
  ],
  [{ a: "b" }, ["c"], ["c"]],
  [{ a: "foo" }, null, null],
  [{ a: "foo" }, "bar", "bar"],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: "b", c: null }, { a: "b" }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
];

for (const [original, patch, result] of APPENDIX) {
  test(`merge: ${JSON.stringify(original)} with ${JSON.stringify(patch)}`, () => {
    const before = structuredClone([original, patch]);
    assert.deepEqual(merge(original, patch), result);
    assert.deepEqual([original, patch], before);
  });
}

test("merge: a member named __proto__ does not set the prototype", () => {
  const merged = merge({ a: 1 }, JSON.parse('{"__proto__":{"polluted":true}}'));
  assert.deepEqual(Object.keys(merged), ["a", "__proto__"]);
  assert.equal(merged.polluted, undefined);
  assert.equal({}.polluted, undefined);
});

test("a subscription sends its filter, receives a snapshot in chunks, and is synced at its end", async () => {
  const { client, clock, Socket } = world();
  const filter = { status: ["running"], job_type: ["failover"], context_id: ["ctx"] };
  const some = follow(client, { ...filter, jobs: ["a", "a", "b"] });
  await settle();
  assert.equal(Socket.last.url, "ws://correlator.test:8686/ws");
  assert.equal(some.updates.length, 1); // at once, and empty
  assert.deepEqual([some.update.synced, some.update.job, some.update.jobs.size], [false, null, 0]);
  Socket.last.welcome();
  assert.deepEqual(Socket.last.sent, [
    { type: "hello", version: 1 },
    { type: "subscribe", id: 1, jobs: ["a", "b"], ...filter, resume: false },
  ]);
  Socket.last.frame({ type: "snapshot", sub: 1, seq: 5, more: true, jobs: [job("x", 3)] });
  await clock.pass(20);
  assert.deepEqual([some.update.synced, some.ids()], [false, ["x"]]);
  Socket.last.frame({ type: "snapshot", sub: 1, seq: 5, more: false, jobs: [job("y", 4)] });
  Socket.last.frame({ type: "synced", sub: 1, seq: 5, count: 2, unknown: ["b"] });
  await clock.pass(20);
  assert.deepEqual([some.update.synced, some.ids(), some.update.unknown], [true, ["x", "y"], ["b"]]);
});

test("put, delta and delete change the jobs, and `changed` has their IDs", async () => {
  const { clock, Socket, all } = await synced([job("x", 3, { error: "no" }), job("z", 2)]);
  Socket.last.frame(put(1, job("y", 10)));
  await clock.pass(20);
  assert.deepEqual([all.ids(), [...all.update.changed]], [["x", "y", "z"], ["y"]]);
  Socket.last.frame(delta(1, "x", 3, 11, { status: "failed", error: null, steps: { 7: { name: "s" } } }));
  await clock.pass(20);
  const { error, ...rest } = job("x", 11, { status: "failed", steps: { 7: { name: "s" } } });
  assert.deepEqual([all.job("x"), [...all.update.changed]], [rest, ["x"]]);
  Socket.last.frame({ type: "delete", sub: [1], seq: 12, job_id: "y", reason: "gone" });
  await clock.pass(20);
  assert.deepEqual([all.ids(), [...all.update.changed]], [["x", "z"], ["y"]]);
});

test("a job that did not change stays the same object in a new map", async () => {
  const { clock, Socket, all } = await synced([job("x", 3), job("y", 4)]);
  const before = all.update.jobs;
  Socket.last.frame(delta(1, "x", 3, 5, { status: "completed" }));
  await clock.pass(20);
  assert.notEqual(all.update.jobs, before);
  assert.equal(all.job("y"), before.get("y"));
  assert.notEqual(all.job("x"), before.get("x"));
  assert.equal(before.get("x").status, "running");
});

test("update.job is the job that started last", async () => {
  const { clock, Socket, all } = await synced([
    job("a", 1, { started_at: "2025-09-22T10:00:00.000001Z" }),
    job("b", 2, { started_at: "2025-09-22T10:00:00.000000Z" }),
    job("c", 3),
  ]);
  assert.equal(all.update.job.job_id, "a");
  Socket.last.frame(put(1, job("d", 4, { started_at: "2025-09-22T10:00:01.000000Z" })));
  await clock.pass(20);
  assert.equal(all.update.job.job_id, "d");
});

test("a document or patch that is not newer than the stored one is ignored", async () => {
  const { clock, Socket, all } = await synced([job("x", 7, { status: "completed" })]);
  Socket.last.frame(put(1, job("x", 7, { status: "running" })), put(1, job("x", 6)));
  Socket.last.frame(delta(1, "x", 5, 7, { status: "failed" }));
  await clock.pass(20);
  assert.equal(all.job("x").status, "completed");
  assert.deepEqual(Socket.last.sentOf("get"), []);
});

test("a patch for another revision requests the whole document once", async () => {
  const { clock, Socket, all } = await synced([job("x", 3, { n: 3 })]);
  Socket.last.frame(delta(1, "x", 4, 5, { n: 5 }), delta(1, "x", 5, 6, { n: 6 }));
  assert.deepEqual(Socket.last.sentOf("get"), [{ type: "get", job_id: "x" }]);
  await clock.pass(20);
  assert.equal(all.job("x").n, 3);
  Socket.last.frame(put(1, job("x", 6, { n: 6 })), delta(1, "x", 6, 7, { n: 7 }));
  await clock.pass(20);
  assert.equal(all.job("x").n, 7);
  Socket.last.frame(delta(1, "x", 9, 10, { n: 10 }), { type: "error", sub: null, code: "not_found", detail: "gone" });
  Socket.last.frame(delta(1, "x", 10, 11, { n: 11 }));
  assert.equal(Socket.last.sentOf("get").length, 3); // a request that was answered with not_found is made again
});

test("a failed request is repeated with the next bookmark, five times in all", async () => {
  const all = await synced([job("x", 4)]);
  const { Socket } = all;
  const unavailable = { type: "error", sub: null, code: "unavailable", detail: "the database is unreachable" };
  Socket.last.frame(delta(1, "x", 8, 9, { n: 9 }));
  for (let seq = 110; seq < 130; seq++) {
    Socket.last.frame(unavailable, { type: "bookmark", seq, at: "…" });
  }
  assert.equal(Socket.last.sentOf("get").length, 5);
  assert.equal((await lose(all)).resume, undefined); // a position would cover a change that never arrived
});

test("once a late document has arrived, a resume continues after it", async () => {
  const all = await synced([job("x", 4)]);
  const { Socket, clock } = all;
  Socket.last.frame(delta(1, "x", 8, 9, { n: 9 }));
  Socket.last.frame({ type: "error", sub: null, code: "unavailable", detail: "" });
  Socket.last.frame({ type: "bookmark", seq: 110, at: "…" });
  assert.equal(Socket.last.sentOf("get").length, 2);
  Socket.last.frame(put(1, job("x", 111, { n: 11 })));
  await clock.pass(20);
  assert.equal(all.all.job("x").n, 11);
  assert.deepEqual((await lose(all)).resume, { epoch: "e1", seq: 111 });
});

test("an error is matched to its request by the job's ID, not by the order", async () => {
  const all = await synced([job("x", 4)]);
  const { Socket } = all;
  Socket.last.frame(delta(1, "x", 8, 9, { n: 9 }), delta(1, "y", 8, 9, { n: 9 }));
  Socket.last.frame({ type: "error", sub: null, code: "not_found", detail: "", job_id: "y" });
  Socket.last.frame({ type: "error", sub: null, code: "unavailable", detail: "", job_id: "other" });
  Socket.last.frame(put(1, job("x", 111, { n: 11 })));
  assert.deepEqual((await lose(all)).resume, { epoch: "e1", seq: 111 });
});

test("pending log lines are bounded: the oldest are dropped and counted", async () => {
  const calls = [];
  const all = await synced([job("x", 4)], {
    more: { onLog: (lines, dropped) => calls.push([lines.length, dropped]) },
  });
  for (let n = 0; n < 25_000; n++) {
    all.Socket.last.frame({ type: "log", sub: [1], job_id: "x", event_id: n, level: "INFO", message: "m", at: "…" });
  }
  await all.clock.pass(20);
  const [lines, dropped] = calls.reduce(([a, b], [c, d]) => [a + c, b + d]);
  assert.ok(lines <= 10_001, String(lines));
  assert.equal(lines + dropped, 25_000);
});

test("a patch for an unknown job requests the whole document", async () => {
  const { clock, Socket, all } = await synced();
  Socket.last.frame(delta(1, "x", 4, 5, { n: 5 }));
  assert.deepEqual(Socket.last.sentOf("get"), [{ type: "get", job_id: "x" }]);
  Socket.last.frame(put(1, job("x", 5, { n: 5 })));
  await clock.pass(20);
  assert.equal(all.job("x").n, 5);
});

test("a requested document reaches the subscriptions that need it, unless the job left them", async () => {
  const { client, clock, Socket, all } = await synced();
  const two = follow(client, { status: ["failed"] });
  Socket.last.snapshot(2, []);
  Socket.last.frame(delta(2, "x", 4, 5, {}), delta(2, "y", 5, 6, {}));
  Socket.last.frame(put(1, job("x", 5)), { type: "delete", sub: [2], seq: 7, job_id: "y", reason: "filter" });
  Socket.last.frame(put([], job("y", 7)));
  await clock.pass(20);
  assert.deepEqual([all.ids(), two.ids()], [["x"], ["x"]]);
});

test("a job that no subscription contains is evicted", async () => {
  const { Socket } = await synced([job("x", 3)]);
  Socket.last.frame({ type: "delete", sub: [1], seq: 101, job_id: "x", reason: "filter" }, delta(1, "x", 3, 102, {}));
  assert.deepEqual(Socket.last.sentOf("get"), [{ type: "get", job_id: "x" }]);
});

test("a patch adds the job to the subscriptions that it names", async () => {
  const { client, clock, Socket, all } = await synced([job("x", 3)]);
  const running = follow(client, { status: ["failed"] });
  Socket.last.snapshot(2, []);
  Socket.last.frame(delta([1, 2], "x", 3, 200, { status: "failed" }));
  await clock.pass(20);
  assert.deepEqual([all.job("x").status, running.ids()], ["failed", ["x"]]);
  assert.equal(running.job("x"), all.job("x"));
});

test("two subscriptions share a job, and a delete removes it from the named one only", async () => {
  const { client, clock, Socket, all } = await synced([job("x", 3), job("y", 4)]);
  const running = follow(client, { status: ["running"] });
  assert.deepEqual(Socket.last.sentOf("subscribe")[1], {
    type: "subscribe",
    id: 2,
    status: ["running"],
    resume: false,
  });
  Socket.last.snapshot(2, [job("x", 3), job("y", 4)]);
  await clock.pass(20);
  assert.equal(running.job("x"), all.job("x"));
  Socket.last.frame(put([1, 2], job("x", 201, { status: "completed" })));
  Socket.last.frame({ type: "delete", sub: [2], seq: 201, job_id: "x", reason: "filter" });
  await clock.pass(20);
  assert.deepEqual([all.ids(), running.ids()], [["x", "y"], ["y"]]);
  assert.equal(all.job("x").status, "completed");
  running.close();
  assert.deepEqual(Socket.last.sentOf("unsubscribe"), [{ type: "unsubscribe", id: 2 }]);
  Socket.last.frame(put([1, 2], job("x", 202, { status: "failed" })));
  await clock.pass(20);
  assert.equal(all.job("x").status, "failed");
  assert.deepEqual(running.ids(), ["y"]); // its last update stays readable
});

test("an ID is unknown until a job with it arrives", async () => {
  const { client, clock, Socket } = world();
  const one = follow(client, "gui-1");
  await settle();
  Socket.last.welcome();
  Socket.last.snapshot(1, [], { unknown: ["gui-1"] });
  await clock.pass(20);
  assert.deepEqual([one.update.unknown, one.update.job], [["gui-1"], null]);
  Socket.last.frame(put(1, job("uuid", 101, { external_ids: ["other", "gui-1"] })));
  await clock.pass(20);
  assert.deepEqual([one.update.unknown, one.update.job.job_id], [[], "uuid"]);
});

test("onLog gets the log lines in order, and the number of dropped ones", async () => {
  const calls = [];
  const { client, clock, Socket } = world();
  client.subscribe({ logs: "WARN" }, () => {}, { onLog: (lines, dropped) => calls.push([lines, dropped]) });
  client.subscribe({ logs: "WARN" }, () => {});
  client.subscribe({}, () => {}, { logs: "DEBUG", onLog: () => {} });
  client.subscribe({}, () => {}, { onLog: () => {} });
  await settle();
  Socket.last.welcome();
  assert.deepEqual(
    Socket.last.sentOf("subscribe").map((s) => s.logs),
    ["WARN", undefined, "DEBUG", "INFO"],
  );
  const line = { job_id: "x", event_id: 9, level: "WARN", step_id: null, message: "m", attrs: { a: 1 }, at: "…" };
  Socket.last.frame({ type: "log", sub: [1, 2], ...line }, { type: "log", sub: [1], ...line, event_id: 8 });
  Socket.last.frame({ type: "log", sub: [1], dropped: 3 }, { type: "log", sub: [1], dropped: 4 });
  await clock.pass(20);
  assert.deepEqual(calls, [[[line, { ...line, event_id: 8 }], 7]]);
  Socket.last.frame({ type: "bookmark", seq: 1, at: "…" });
  await clock.pass(20);
  assert.equal(calls.length, 1);
});

test("the changes of one frame, and of 16 ms, are one call", async () => {
  const { clock, Socket, all } = await synced();
  const before = all.updates.length;
  await clock.pass(100);
  Socket.last.frame(...Array.from({ length: 50 }, (_, i) => put(1, job("x", 101 + i))));
  await settle();
  assert.equal(all.updates.length, before + 1); // at once
  assert.equal(all.job("x").rev, 150);
  for (let i = 0; i < 32; i++) {
    Socket.last.frame(put(1, job("x", 200 + i)));
    await clock.pass(1);
  }
  await clock.pass(20);
  assert.equal(all.job("x").rev, 231);
  assert.ok(all.updates.length <= before + 4, `${all.updates.length - before} calls in 52 ms`);
});

test("an update without a changed job keeps the map", async () => {
  const { clock, Socket, all } = await synced([job("x", 1)]);
  const before = all.update;
  Socket.last.frame({ type: "status", source: "down", lag_seconds: 4 });
  await clock.pass(20);
  assert.notEqual(all.update, before);
  assert.equal(all.update.jobs, before.jobs);
  assert.deepEqual([all.update.connection.state, all.update.changed.size], ["stale", 0]);
});

test("unknown messages and members are ignored", async () => {
  const { clock, Socket, all } = await synced([job("x", 1)]);
  Socket.last.frame({ type: "novelty", sub: [1], jobs: 7 }, { ...put(1, job("y", 101)), novelty: {} }, 7, null, [1]);
  Socket.last.frame({ type: "pong" });
  await clock.pass(20);
  assert.deepEqual([all.ids(), all.update.connection.state], [["x", "y"], "live"]);
});

test("an error in one callback does not affect the others", async (t) => {
  const reported = t.mock.method(console, "error", () => {});
  const { client, clock, Socket, all } = await synced();
  client.subscribe({}, () => {
    throw new Error("of the page");
  });
  Socket.last.frame(put(1, job("y", 101)));
  await clock.pass(20);
  assert.deepEqual(all.ids(), ["y"]);
  assert.ok(reported.mock.callCount() > 0);
});

test("a subscription that another callback closes is not called any more", async () => {
  const { client, clock, Socket } = await synced();
  let calls = 0;
  let closes = false;
  client.subscribe({}, () => closes && second.close());
  const second = client.subscribe({}, () => calls++);
  await clock.pass(20);
  [calls, closes] = [0, true];
  Socket.last.frame(put([2, 3], job("y", 101)));
  await clock.pass(20);
  assert.equal(calls, 0);
});
