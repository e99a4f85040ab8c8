// The end of a connection: its state, and the time of the next attempt.

import assert from "node:assert/strict";
import { test } from "node:test";
import { follow, job, lose, put, seeded, settle, synced, world } from "./fakes.mjs";

test("the backoff has full jitter below a limit that doubles from 0.5 s to 20 s", async () => {
  const most = Array(12).fill(0);
  for (let seed = 1; seed <= 60; seed++) {
    const { client, clock, Socket } = world({ random: seeded(seed), transports: ["websocket"] });
    follow(client, "a");
    await settle();
    for (let n = 0; n < most.length; n++) {
      Socket.last.end();
      const delay = client.connection.retry_at - clock.time;
      assert.equal(client.connection.state, "offline");
      assert.ok(delay >= 0 && delay <= Math.min(20_000, 500 * 2 ** n), `attempt ${n}: ${delay} ms`);
      most[n] = Math.max(most[n], delay / Math.min(20_000, 500 * 2 ** n));
      const before = Socket.made.length;
      await clock.pass(delay - 1);
      assert.equal(Socket.made.length, before);
      await clock.pass(1);
      assert.equal(Socket.made.length, before + 1);
      assert.equal(client.connection.state, "connecting");
    }
    client.close();
  }
  assert.ok(
    most.every((share) => share > 0.8),
    String(most),
  );
});

test("the backoff starts again after a stable connection, not after one that ended at once", async () => {
  const { client, clock, Socket } = world({ random: () => 1 });
  follow(client, "a");
  await settle();
  const delays = [];
  for (const lived of [0, 0, 0, 11_000, 0]) {
    Socket.last.welcome();
    await clock.pass(lived);
    Socket.last.end();
    delays.push(client.connection.retry_at - clock.time);
    await clock.pass(delays.at(-1));
  }
  assert.deepEqual(delays, [500, 1000, 2000, 500, 1000]);
});

const CODES = [
  // code, longest delay in ms after a first failure, retry_ms of a bye before it
  [1012, 5000],
  [1012, 900, [800, 900]],
  [1013, 500],
  [4429, 500],
  [4508, 500],
  [4408, 500],
  [1006, 500],
  [4400, 20_000],
  [1009, 20_000],
];

for (const [code, most, retry_ms] of CODES) {
  const bye = retry_ms ? ` after bye with retry_ms ${retry_ms}` : "";
  test(`close code ${code}${bye} waits up to ${most} ms, and resumes`, async () => {
    for (const share of [0, 1]) {
      const all = await synced([], { random: () => share });
      if (retry_ms) all.Socket.last.frame({ type: "bye", code, retry_ms });
      all.Socket.last.end(code, "why");
      const { state, retry_at, error } = all.client.connection;
      assert.deepEqual([state, error], ["offline", "why"]);
      assert.equal(retry_at - all.clock.time, share ? most : (retry_ms?.[0] ?? 0));
      await all.clock.pass(most);
      all.Socket.last.open();
      assert.deepEqual(all.Socket.last.sent[0].resume, { epoch: "e1", seq: 100 });
      all.client.close();
    }
  });
}

test("a bye replaces a lost close frame, and an invalid retry_ms is ignored", async () => {
  const all = await synced([], { random: () => 1 });
  all.Socket.last.frame({ type: "bye", code: 1012, retry_ms: [100, 200] });
  all.Socket.last.end(1006);
  assert.equal(all.client.connection.retry_at - all.clock.time, 200);
  const odd = await synced([], { random: () => 1 });
  odd.Socket.last.frame({ type: "bye", code: 1012, retry_ms: "soon" });
  odd.Socket.last.end(1012);
  assert.equal(odd.client.connection.retry_at - odd.clock.time, 5000);
});

for (const code of [4401, 4403]) {
  test(`close code ${code}: a token function is called once more, then the state is refused`, async () => {
    const calls = [];
    const token = async () => `token-${calls.push(0)}`;
    const { client, clock, Socket, Stream, fetch } = world({ token });
    follow(client, "a");
    await settle();
    Socket.last.open();
    assert.equal(Socket.last.sent[0].token, "token-1");
    Socket.last.end(code, "not known");
    await settle();
    Socket.last.open();
    assert.equal(Socket.last.sent[0].token, "token-2");
    Socket.last.end(code, "not known");
    await clock.pass(600_000);
    const { state, error, retry_at, transport } = client.connection;
    assert.deepEqual([state, error, retry_at, transport], ["refused", "not known", null, null]);
    assert.deepEqual([Socket.made.length, Stream.made.length, fetch.made.length], [2, 0, 0]);
  });
}

test("close code 4401 is final for a plain token; a function is called again after each snapshot", async () => {
  const plain = world({ token: "t" });
  follow(plain.client, "a");
  await settle();
  plain.Socket.last.open();
  plain.Socket.last.end(4401);
  await plain.clock.pass(60_000);
  assert.deepEqual([plain.client.connection.state, plain.Socket.made.length], ["refused", 1]);

  let calls = 0;
  const all = await synced([], { token: () => `t${++calls}` });
  for (const expected of [2, 3, 4]) {
    all.Socket.last.end(4401, "expired");
    await settle();
    all.Socket.last.welcome({ resumed: true });
    all.Socket.last.frame({ type: "synced", sub: 1, seq: 100, count: 0, unknown: [] });
    assert.equal(all.Socket.last.sent[0].token, `t${expected}`);
  }
});

test("a token function that fails is called again", async () => {
  let calls = 0;
  const token = () => (++calls < 3 ? Promise.reject(new Error("logged out")) : "t");
  const { client, clock, Socket, fetch } = world({ token, answer: () => [401, {}] });
  follow(client, "a");
  await settle();
  assert.deepEqual([client.connection.state, client.connection.error], ["offline", "logged out"]);
  await clock.pass(2000);
  assert.equal(fetch.made.length, 0); // a missing token is no sign of a blocked websocket
  Socket.last.open();
  assert.equal(Socket.last.sent[0].token, "t");
});

test("a client that is closed while it awaits a token opens no connection", async () => {
  let give;
  const { client, Socket } = world({ token: () => new Promise((done) => (give = done)) });
  follow(client, "a");
  await settle();
  client.close();
  give("t");
  await settle();
  assert.equal(Socket.made.length, 0);
});

test("a silent connection is stale after 25 s, closed after 40 s, and live after any message", async () => {
  const all = await synced();
  await all.clock.pass(24_900);
  assert.equal(all.client.connection.state, "live");
  await all.clock.pass(200);
  assert.equal(all.client.connection.state, "stale");
  all.Socket.last.frame({ type: "bookmark", seq: 160, at: "…" });
  assert.equal(all.client.connection.state, "live");
  await all.clock.pass(26_000);
  assert.equal(all.all.update.connection.state, "stale");
  const dead = all.Socket.last;
  await all.clock.pass(14_000);
  assert.equal(dead.closedWith, 1000);
  await all.clock.pass(500);
  assert.notEqual(all.Socket.last, dead);
  all.Socket.last.open();
  assert.deepEqual(all.Socket.last.sent[0].resume, { epoch: "e1", seq: 160 });
  dead.frame(put(1, job("late", 999)));
  assert.deepEqual(all.all.ids(), []);
});

test("the state is stale, with the daemon's lag and reason, while the daemon does not reach its database", async () => {
  const all = await synced();
  for (const [source, state, error] of [
    ["stale", "stale", "job_steps cannot be read"],
    ["down", "stale", "the database cannot be reached"],
    ["live", "live", null],
  ]) {
    all.Socket.last.frame({ type: "status", source, lag_seconds: 7.5, error });
    await all.clock.pass(20);
    const { connection } = all.all.update;
    const { lag_seconds: lag } = connection;
    assert.deepEqual([connection.state, connection.source, lag, connection.error], [state, source, 7.5, error]);
  }
});

test("a socket without a welcome is closed after 15 s", async () => {
  const { client, clock, Socket } = world();
  follow(client, "a");
  await settle();
  Socket.last.open();
  await clock.pass(14_900);
  assert.deepEqual([client.connection.state, Socket.last.closedWith], ["connecting", null]);
  await clock.pass(200);
  assert.deepEqual([client.connection.state, Socket.made[0].closedWith], ["offline", 1000]);
});

const FORBIDDEN = { type: "error", code: "forbidden", detail: "this token is only for the job 'a'" };

test("a subscription that the token does not open is refused, and others of the connection go on", async () => {
  const given = await synced([job("a", 1)], { token: "of-a" });
  const { client, clock, Socket, all } = given;
  const other = follow(client, "b");
  await clock.pass(100);
  Socket.last.frame({ ...FORBIDDEN, sub: 2 });
  Socket.last.frame(put(1, job("a", 101, { status: "completed" })));
  await clock.pass(100);
  const { state, error } = other.update.connection;
  assert.deepEqual([state, error], ["refused", FORBIDDEN.detail]);
  assert.deepEqual([all.job("a").status, all.update.connection.state, client.connection.error], ["completed", "live", null]);
  const { resume } = await lose(given);
  assert.deepEqual(resume, { epoch: "e1", seq: 101 }, "nothing that was refused is waited for");
  Socket.last.welcome({ resumed: true });
  await clock.pass(100);
  assert.equal(other.update.connection.state, "live", "a new connection may have another token");
});

test("a token that opens nothing of what is wanted is renewed once, and then refused itself", async () => {
  let calls = 0;
  const { client, clock, Socket } = world({ token: () => `t${++calls}` });
  const followed = follow(client, "b");
  for (let n = 0; n < 2; n++) {
    await settle();
    Socket.last.welcome();
    Socket.last.frame({ ...FORBIDDEN, sub: 1 });
  }
  await clock.pass(60_000);
  assert.deepEqual([calls, Socket.made.length, client.connection.state], [2, 2, "refused"]);
  assert.deepEqual([followed.update.connection.state, followed.update.connection.error], ["refused", FORBIDDEN.detail]);
});
