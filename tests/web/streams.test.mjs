// Where a websocket does not get through: event streams, and the way back.

import assert from "node:assert/strict";
import { test } from "node:test";
import { delta, follow, job, nobody, put, settle, streaming, welcome, world, EMPTY } from "./fakes.mjs";

test("two websockets in vain while HTTP gets through: an event stream per subscription, with its filter", async () => {
  const what = [["a b", "c&d"], { status: ["running", "failed"] }];
  const { client, clock, Socket, Stream, fetch, followed } = await streaming(what);
  assert.equal(Socket.made.length, 2);
  assert.deepEqual(
    fetch.made.map((r) => r.path),
    ["/api/v1/jobs?limit=1", "/api/v1/jobs?limit=1"],
  );
  assert.deepEqual(
    Stream.made.map((s) => s.url.pathname + s.url.search),
    ["/api/v1/stream?id=a+b&id=c%26d", "/api/v1/stream?status=running&status=failed"],
  );
  const [one, two] = Stream.made;
  one.event(welcome());
  two.event(welcome());
  one.event({ type: "snapshot", sub: 1, seq: 9, more: false, jobs: [job("x", 3)] });
  one.event({ type: "synced", sub: 1, seq: 9, count: 1, unknown: ["c&d"] });
  two.event([
    { type: "snapshot", sub: 1, seq: 9, more: false, jobs: [] },
    { type: "synced", sub: 1, seq: 9, count: 0, unknown: [] },
  ]);
  two.event(put(1, job("y", 10)));
  one.event({ type: "status", source: "live", lag_seconds: 0 });
  await clock.pass(20);
  assert.deepEqual(
    followed.map((f) => f.ids()),
    [["x"], ["y"]],
  );
  assert.deepEqual([followed[0].update.unknown, followed[1].update.synced], [["c&d"], true]);
  assert.deepEqual([client.connection.state, client.connection.transport], ["live", "sse"]);
  followed[1].close();
  assert.deepEqual(
    Stream.made.map((s) => s.readyState),
    [1, 2],
  );
  const third = follow(client, "z");
  Stream.last.event(welcome());
  Stream.last.event({ type: "synced", sub: 1, seq: 9, count: 0, unknown: ["z"] });
  await clock.pass(20);
  assert.deepEqual([Stream.last.url.search, third.update.unknown], ["?id=z", ["z"]]);
});

test("nobody there at all: it stays with the websocket, however long it takes", async () => {
  const { client, clock, Socket, Stream } = world({ answer: nobody });
  follow(client, "a");
  await settle();
  for (let n = 0; n < 30; n++) {
    Socket.last.end();
    await clock.pass(20_000);
  }
  assert.deepEqual([Socket.made.length > 30, Stream.made.length], [true, 0]);
});

test("a proxy's 502, or a daemon that is still loading, is nobody", async () => {
  for (const status of [502, 503, 404]) {
    const { Stream, Socket } = await streaming(["a"], { answer: () => [status, {}] });
    assert.deepEqual([Stream.made.length, Socket.made.length], [0, 3]);
  }
});

test("a daemon that was away and is there again: a websocket, not what lies behind it", async () => {
  let up = false;
  const { client, clock, Socket, Stream } = world({ answer: () => (up ? EMPTY : nobody()) });
  follow(client, "a");
  await settle();
  for (let n = 0; n < 5; n++) {
    Socket.last.end();
    await clock.pass(20_000 * 0.5);
  }
  up = true;
  Socket.last.end();
  await clock.pass(20_000 * 0.5);
  Socket.last.welcome();
  assert.deepEqual([client.connection.transport, Stream.made.length], ["websocket", 0]);
});

test("one websocket in vain is no reason; a welcome forgets it", async () => {
  const { client, clock, Socket, Stream } = world({ answer: () => EMPTY, random: () => 0 });
  follow(client, "a");
  await settle();
  for (let n = 0; n < 5; n++) {
    Socket.last.end();
    await clock.pass(0);
    Socket.last.welcome();
    Socket.last.end();
    await clock.pass(0);
  }
  assert.deepEqual([Socket.made.length, Stream.made.length], [11, 0]);
});

test("a request that gets through late, when a websocket is welcome already, counts for nothing", async () => {
  let late = null;
  const answer = () => (late === null ? new Promise((done) => (late = () => done(EMPTY))) : EMPTY);
  const { client, clock, Socket, Stream } = world({ answer, random: () => 0 });
  follow(client, "a");
  await settle();
  Socket.last.end();
  await clock.pass(0);
  Socket.last.welcome();
  late();
  await settle();
  for (let n = 0; n < 2; n++) {
    Socket.last.end();
    await clock.pass(0);
  }
  assert.deepEqual([Socket.made.length, Stream.made.length], [4, 0]);
});

test("a daemon that answers and sends away is not blocked", async () => {
  for (const code of [1012, 1013, 4429, 4408]) {
    const { client, clock, Socket, Stream } = world({ answer: () => EMPTY, random: () => 0 });
    follow(client, "a");
    await settle();
    for (let n = 0; n < 5; n++) {
      Socket.last.end(code);
      await clock.pass(0);
    }
    assert.deepEqual([Socket.made.length, Stream.made.length], [6, 0]);
  }
});

test("event stream: a patch on another revision asks by request, and goes on", async () => {
  const answer = (path) => (path.startsWith("/api/v1/jobs/x") ? [200, job("x", 7, { n: 7 })] : EMPTY);
  const { clock, Stream, fetch, followed } = await streaming([{}], { answer });
  Stream.last.event(welcome());
  Stream.last.event({ type: "snapshot", sub: 1, seq: 9, more: false, jobs: [job("x", 3)] });
  Stream.last.event({ type: "synced", sub: 1, seq: 9, count: 1, unknown: [] });
  Stream.last.event(delta(1, "x", 6, 7, { n: 7 }));
  await settle();
  Stream.last.event(delta(1, "x", 7, 8, { n: 8 }));
  await clock.pass(20);
  assert.equal(followed[0].job("x").n, 8);
  assert.deepEqual(fetch.made.map((r) => r.path).slice(2), ["/api/v1/jobs/x"]);
});

test("event stream without a token: the browser comes back by itself, resumed or not", async () => {
  const { client, clock, Stream, followed } = await streaming([{}]);
  Stream.last.event(welcome());
  Stream.last.event({ type: "snapshot", sub: 1, seq: 9, more: false, jobs: [job("x", 3), job("y", 4)] });
  Stream.last.event({ type: "synced", sub: 1, seq: 9, count: 2, unknown: [] });
  await clock.pass(20);
  Stream.last.fail(0);
  assert.equal(client.connection.state, "connecting");
  Stream.last.event(welcome({ resumed: true }));
  Stream.last.event(delta(1, "x", 3, 10, { n: 1 }));
  Stream.last.event({ type: "synced", sub: 1, seq: 10, count: 2, unknown: [] });
  await clock.pass(20);
  assert.deepEqual([client.connection.state, followed[0].ids(), followed[0].job("x").n], ["live", ["x", "y"], 1]);
  Stream.last.fail(0);
  Stream.last.event(welcome({ epoch: "e2" }));
  Stream.last.event({ type: "snapshot", sub: 1, seq: 2, more: false, jobs: [job("x", 1)] });
  await clock.pass(20);
  assert.deepEqual(followed[0].ids(), ["x", "y"]);
  Stream.last.event({ type: "synced", sub: 1, seq: 2, count: 1, unknown: [] });
  await clock.pass(20);
  assert.deepEqual([followed[0].ids(), followed[0].job("x").rev], [["x"], 1]);
  // What streams had is not a position of a websocket.
  const made = Stream.made.length;
  await clock.pass(41_000);
  assert.ok(Stream.made.length > made);
});

test("event stream with a token: a ticket per stream, and after an error a new one", async () => {
  let tickets = 0;
  const answer = (path) => (path === "/api/v1/ticket" ? [200, { ticket: `t${++tickets}`, expires_in: 30 }] : EMPTY);
  const { clock, Stream, fetch } = await streaming(["a", "b"], { answer, token: "secret" });
  assert.deepEqual(
    Stream.made.map((s) => s.url.search),
    ["?id=a&ticket=t1", "?id=b&ticket=t2"],
  );
  const asked = fetch.made.filter((r) => r.path === "/api/v1/ticket");
  assert.deepEqual(
    asked.map((r) => [r.method, r.headers.authorization]),
    Array(2).fill(["POST", "Bearer secret"]),
  );
  Stream.last.event(welcome());
  Stream.last.fail(0); // the browser would come back with a ticket that is used
  assert.deepEqual(
    Stream.made.map((s) => s.readyState),
    [2, 2],
  );
  await clock.pass(1000);
  assert.deepEqual(
    Stream.made.slice(2).map((s) => s.url.search),
    ["?id=a&ticket=t3", "?id=b&ticket=t4"],
  );
});

test("a subscription that is closed while its ticket is on the way opens no stream", async () => {
  let give;
  const answer = (path) => (path === "/api/v1/ticket" ? new Promise((done) => (give = done)) : EMPTY);
  const { Stream, followed } = await streaming(["a"], { answer, token: "secret" });
  followed[0].close();
  give([200, { ticket: "t" }]);
  await settle();
  assert.equal(Stream.made.length, 0);
});

test("a bye on an event stream is heeded", async () => {
  const { client, clock, Stream } = await streaming(["a"], { random: () => 1 });
  Stream.last.event(welcome());
  Stream.last.event({ type: "bye", code: 1012, retry_ms: [1000, 3000] });
  assert.equal(client.connection.state, "offline");
  assert.equal(client.connection.retry_at - clock.time, 3000);
  assert.equal(Stream.last.readyState, 2);
});

test("more subscriptions than a browser has connections for: polling instead of event streams", async () => {
  const { client, clock, Stream, followed } = await streaming(["a", "b", "c"]);
  assert.equal(Stream.made.length, 3);
  Stream.last.event(welcome());
  for (const id of ["d", "e"]) followed.push(follow(client, id));
  await clock.pass(100);
  assert.deepEqual(
    Stream.made.map((s) => s.readyState),
    [2, 2, 2, 2],
  );
  assert.deepEqual([client.connection.transport, followed.every((f) => f.update.synced)], ["poll", true]);
  const only = await streaming(["a", "b", "c", "d", "e"], { transports: ["websocket", "sse"] });
  assert.equal(only.Stream.made.length, 5);
});

test("each 5 minutes the websocket is tried beside what works, and taken once it is welcome", async () => {
  const { client, clock, Socket, Stream, followed } = await streaming([{}]);
  Stream.last.event(welcome());
  Stream.last.event({ type: "snapshot", sub: 1, seq: 9, more: false, jobs: [job("x", 3)] });
  Stream.last.event({ type: "synced", sub: 1, seq: 9, count: 1, unknown: [] });
  const beat = async (ms) => {
    for (let passed = 0; passed < ms; passed += 10_000) {
      await clock.pass(10_000);
      Stream.last.event({ type: "bookmark", seq: 10, at: "…" });
    }
  };
  await beat(290_000);
  assert.equal(Socket.made.length, 2);
  await beat(20_000);
  assert.deepEqual([Socket.made.length, client.connection.transport], [3, "sse"]);
  Socket.last.end();
  assert.deepEqual([client.connection.state, client.connection.transport, Stream.last.readyState], ["live", "sse", 1]);
  await beat(310_000);
  assert.equal(Socket.made.length, 4);
  Socket.last.welcome();
  assert.deepEqual(Socket.last.said, [
    { type: "hello", version: 1 },
    { type: "subscribe", id: 1, resume: false },
  ]);
  assert.deepEqual([client.connection.transport, Stream.last.readyState, followed[0].ids()], ["websocket", 2, ["x"]]);
  Socket.last.snapshot(1, [job("x", 3), job("y", 4)]);
  for (let n = 0; n < 60; n++) {
    await clock.pass(10_000);
    Socket.last.frame({ type: "bookmark", seq: 20 + n, at: "…" });
  }
  assert.deepEqual([Socket.made.length, followed[0].ids()], [4, ["x", "y"]]); // and there are no more trials
});

for (const status of [401, 403]) {
  test(`HTTP status ${status} where streams or polls ask: refused, as on a websocket`, async () => {
    for (const transports of [["sse"], ["poll"]]) {
      let asked = 0;
      const { client, clock, fetch } = world({
        transports,
        answer: () => [status, {}],
        token: () => `t${++asked}`,
      });
      follow(client, "a");
      await clock.pass(60_000);
      assert.deepEqual([client.connection.state, asked, fetch.made.length], ["refused", 2, 2]);
    }
  });
}

test("a blocked websocket and a wrong token: refused, not offline for ever", async () => {
  const { client } = await streaming(["a"], { answer: () => [401, {}], token: "wrong" });
  assert.equal(client.connection.state, "refused");
});

test("transports that are not there are left out", async () => {
  const there = { WebSocket: undefined, EventSource: undefined, transports: ["sse", "poll"] };
  const { client, clock, fetch } = world({ answer: () => EMPTY, ...there });
  const all = follow(client, {});
  await clock.pass(100);
  assert.deepEqual([all.update.synced, client.connection.transport, fetch.made.length], [true, "poll", 1]);
});
