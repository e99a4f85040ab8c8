// Reconnecting: resume and new snapshots.

import assert from "node:assert/strict";
import { test } from "node:test";
import { delta, follow, job, lose, put, settle, synced, world } from "./fakes.mjs";

test("after an accepted resume the jobs stay, and the missed changes arrive", async () => {
  const all = await synced([job("x", 3), job("y", 4)], { seq: 100 });
  all.Socket.last.frame(put(1, job("x", 130)), { type: "bookmark", seq: 150, at: "…" });
  assert.deepEqual(await lose(all), { type: "hello", version: 1, resume: { epoch: "e1", seq: 150 } });
  all.Socket.last.frame({ type: "welcome", epoch: "e1", seq: 170, resumed: true });
  assert.deepEqual(all.Socket.last.sentOf("subscribe"), [{ type: "subscribe", id: 1, resume: true }]);
  all.Socket.last.frame(delta(1, "x", 130, 160, { n: 1 }));
  all.Socket.last.frame({ type: "delete", sub: [1], seq: 161, job_id: "y", reason: "gone" });
  all.Socket.last.frame({ type: "synced", sub: 1, seq: 170, count: 1, unknown: [] });
  await all.clock.pass(20);
  assert.deepEqual([all.all.ids(), all.all.job("x").n, all.all.update.synced], [["x"], 1, true]);
  assert.deepEqual((await lose(all)).resume, { epoch: "e1", seq: 170 });
});

test("after a refused resume a new snapshot replaces the jobs once it is complete", async () => {
  const all = await synced([job("x", 3), job("y", 400)]);
  await lose(all);
  all.Socket.last.frame({ type: "welcome", epoch: "e2", seq: 9, resumed: false });
  assert.deepEqual(all.Socket.last.sentOf("subscribe"), [{ type: "subscribe", id: 1, resume: false }]);
  all.Socket.last.frame({ type: "snapshot", sub: 1, seq: 9, more: true, jobs: [job("z", 2)] });
  await all.clock.pass(20);
  assert.deepEqual([all.all.ids(), all.all.update.synced], [["x", "y", "z"], true]);
  // Another run of the daemon: its revisions count, although they are lower.
  all.Socket.last.frame({ type: "snapshot", sub: 1, seq: 9, more: false, jobs: [job("y", 1, { n: 1 })] });
  all.Socket.last.frame({ type: "synced", sub: 1, seq: 9, count: 2, unknown: [] });
  await all.clock.pass(20);
  assert.deepEqual([all.all.ids(), all.all.job("y").n, [...all.all.update.changed]], [["y", "z"], 1, ["y", "x"]]);
});

test("a job that did not change during an interruption stays the same object", async () => {
  const all = await synced([job("x", 3)]);
  const before = all.all.job("x");
  await lose(all);
  all.Socket.last.frame({ type: "welcome", epoch: "e1", seq: 100, resumed: false });
  all.Socket.last.snapshot(1, [job("x", 3)]);
  await all.clock.pass(20);
  assert.equal(all.all.job("x"), before);
});

test("a patch of another epoch is not merged, even if the revisions are equal", async () => {
  const all = await synced([job("x", 3)]);
  await lose(all);
  all.Socket.last.frame({ type: "welcome", epoch: "e2", seq: 9, resumed: false }, delta(1, "x", 3, 4, { n: 1 }));
  assert.deepEqual(all.Socket.last.sentOf("get"), [{ type: "get", job_id: "x" }]);
});

test("after a resync a new snapshot replaces the jobs, and until then there is no position", async () => {
  const all = await synced([job("x", 3), job("y", 4)]);
  all.Socket.last.frame({ type: "resync", reason: "gap" });
  all.Socket.last.frame({ type: "snapshot", sub: 1, seq: 200, more: true, jobs: [job("x", 3)] });
  await all.clock.pass(20);
  assert.deepEqual(all.all.ids(), ["x", "y"]);
  all.Socket.last.frame({ type: "snapshot", sub: 1, seq: 201, more: false, jobs: [] });
  all.Socket.last.frame({ type: "synced", sub: 1, seq: 201, count: 1, unknown: [] });
  await all.clock.pass(20);
  assert.deepEqual(all.all.ids(), ["x"]);
  all.Socket.last.frame({ type: "resync", reason: "slow" }, { type: "bookmark", seq: 300, at: "…" });
  assert.equal((await lose(all)).resume, undefined);
});

test("a resync of one subscription does not affect the jobs of the others", async () => {
  const { client, clock, Socket } = world();
  const [one, two, three] = ["a", "b", "c"].map((id) => follow(client, id));
  await settle();
  Socket.last.welcome();
  for (const sub of [1, 2, 3]) Socket.last.snapshot(sub, [job(`x${sub}`, sub)]);
  await lose({ clock, Socket });
  Socket.last.frame({ type: "welcome", epoch: "e1", seq: 300, resumed: true });
  Socket.last.frame({ type: "synced", sub: 1, seq: 300, count: 0, unknown: [] }, { type: "resync", reason: "gap" });
  Socket.last.frame(put(2, job("y", 301))); // a lagging client gets new changes before the snapshot
  Socket.last.frame({ type: "snapshot", sub: 2, seq: 302, more: false, jobs: [job("z", 9)] });
  Socket.last.frame({ type: "synced", sub: 2, seq: 302, count: 1, unknown: [] });
  Socket.last.frame({ type: "synced", sub: 3, seq: 303, count: 0, unknown: [] });
  await clock.pass(20);
  assert.deepEqual([one.ids(), two.ids(), three.ids()], [["x1"], ["y", "z"], ["x3"]]);
  Socket.last.frame(delta(1, "x1", 1, 304, { n: 1 }));
  await clock.pass(20);
  assert.equal(one.job("x1").n, 1);
  assert.equal((await lose({ clock, Socket })).resume, undefined); // the first subscription may lack changes
});

test("an interrupted snapshot is not resumed", async () => {
  const all = await synced([job("x", 3)]);
  await lose(all);
  all.Socket.last.frame({ type: "welcome", epoch: "e1", seq: 300, resumed: true });
  all.Socket.last.frame({ type: "snapshot", sub: 1, seq: 300, more: true, jobs: [job("y", 9)] });
  await lose(all);
  all.Socket.last.frame({ type: "welcome", epoch: "e1", seq: 301, resumed: true });
  assert.deepEqual(all.Socket.last.sentOf("subscribe"), [{ type: "subscribe", id: 1, resume: false }]);
});

test("a refused position is not sent again", async () => {
  const all = await synced([job("x", 3)]);
  assert.deepEqual((await lose(all)).resume, { epoch: "e1", seq: 100 });
  all.Socket.last.frame({ type: "welcome", epoch: "e2", seq: 1, resumed: false });
  assert.equal((await lose(all)).resume, undefined);
});

test("the position does not advance while a requested document is missing", async () => {
  const all = await synced([job("x", 3)], { seq: 100 });
  all.Socket.last.frame(delta(1, "x", 5, 110, {}), { type: "bookmark", seq: 120, at: "…" });
  assert.deepEqual((await lose(all)).resume, { epoch: "e1", seq: 100 });
});

test("there is no position before every subscription is synced", async () => {
  const { client, clock, Socket } = world();
  follow(client, "a");
  follow(client, "b");
  await settle();
  Socket.last.welcome({ seq: 50 });
  Socket.last.snapshot(1, [], { seq: 51 });
  Socket.last.frame(put(1, job("x", 60)), { type: "bookmark", seq: 61, at: "…" });
  assert.equal((await lose({ clock, Socket })).resume, undefined);
  Socket.last.frame({ type: "welcome", epoch: "e1", seq: 70, resumed: false });
  Socket.last.snapshot(1, [], { seq: 71 });
  Socket.last.snapshot(2, [], { seq: 72 });
  // A third one, not synced yet, stops the position, and is not resumed itself.
  follow(client, "c");
  Socket.last.frame({ type: "bookmark", seq: 80, at: "…" });
  assert.deepEqual((await lose({ clock, Socket })).resume, { epoch: "e1", seq: 72 });
  Socket.last.frame({ type: "welcome", epoch: "e1", seq: 90, resumed: true });
  assert.deepEqual(
    Socket.last.sentOf("subscribe").map((s) => s.resume),
    [true, true, false],
  );
  // Interrupted again during the resume: the position does not advance.
  Socket.last.frame({ type: "synced", sub: 1, seq: 90, unknown: [] }, { type: "bookmark", seq: 95, at: "…" });
  assert.deepEqual((await lose({ clock, Socket })).resume, { epoch: "e1", seq: 72 });
});

const brief = (messages) => messages.map((s) => (s.type === "hello" ? s.type : [s.type, s.id]));

test("with nothing to resume, hello and subscriptions are in the address, and others follow when it is open", async () => {
  const { client, Socket } = world();
  follow(client, "a");
  follow(client, "b").close();
  await settle();
  const { last } = Socket;
  assert.deepEqual(brief(last.said), ["hello", ["subscribe", 1]]);
  assert.deepEqual(last.said[1], { type: "subscribe", id: 1, jobs: ["a"], resume: false });
  assert.equal(last.sent.length, 2);
  last.open();
  follow(client, "c").close();
  last.frame({ type: "welcome", epoch: "e1", seq: 1, resumed: false });
  assert.deepEqual(
    brief(last.sent.slice(2)),
    [2, 3].flatMap((id) => [["subscribe", id], ["unsubscribe", id]]), // prettier-ignore
  );
});

test("a token, and more than 2,000 characters, are not in the address but sent when it is open", async () => {
  for (const [ids, options] of [["a", { token: "secret" }], [["a".repeat(2000)], {}]]) { // prettier-ignore
    const { client, Socket } = world(options);
    follow(client, ids);
    await settle();
    assert.deepEqual([Socket.last.said, Socket.last.sent], [[], []]);
    Socket.last.open();
    assert.deepEqual(brief(Socket.last.sent), ["hello", ["subscribe", 1]]);
    assert.equal(Socket.last.sent[0].token, options.token);
  }
});

test("what a daemon does not read before its welcome is sent after it, in order", async () => {
  for (const id of ["a", "b".repeat(250)]) {
    const { client, Socket } = world({ token: "secret" });
    const views = Array.from({ length: 250 }, (_, n) => follow(client, [`${id}${n}`]));
    await settle();
    Socket.last.open();
    const { sent } = Socket.last;
    assert.ok(sent.length > 1 && sent.length < 200 && JSON.stringify(sent).length < 24_000, sent.length);
    Socket.last.frame({ type: "welcome", epoch: "e1", seq: 1, resumed: false });
    const all = views.map((_, n) => ["subscribe", n + 1]);
    assert.deepEqual(brief(sent), ["hello", ...all]);
  }
});

test("a connection that may resume sends the subscriptions that exist at the welcome, after it", async () => {
  const all = await synced([job("x", 3)], { seq: 100 });
  await lose(all);
  const b = follow(all.client, "b");
  follow(all.client, "c");
  b.close();
  assert.deepEqual(brief(all.Socket.last.said), ["hello"]);
  all.Socket.last.frame({ type: "welcome", epoch: "e1", seq: 100, resumed: true });
  assert.deepEqual(brief(all.Socket.last.sent), ["hello", ["subscribe", 1], ["subscribe", 3]]);
});
