// Event streams, where websockets are blocked, and the return to the websocket.

import assert from "node:assert/strict";
import { test } from "node:test";
import { delta, follow, job, unreachable, put, settle, streaming, welcome, world, EMPTY } from "./fakes.mjs";

test("after two failed websockets each subscription has an event stream, if HTTP works", async () => {
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

test("a subscription to an empty list of IDs asks an event stream and a poll for no job", async () => {
  const { client, Stream, fetch, followed } = await streaming([[], { jobs: [], status: ["running"] }]);
  assert.deepEqual(
    Stream.made.map((s) => s.url.search),
    ["?id=", "?id=&status=running"],
  );
  client.close();
  assert.equal(followed[0].update.synced, false);
  const polled = world({ transports: ["poll"], answer: () => EMPTY });
  const none = follow(polled.client, []);
  await polled.clock.pass(100);
  assert.deepEqual([polled.fetch.made, none.update.synced, none.ids()], [[], true, []]);
  assert.equal(fetch.made.length, 2); // those that found out whether REST requests succeed
});

/** Two event streams that are welcomed and synced. */
async function twoStreams(options) {
  const given = await streaming(["a", "b"], options);
  for (const stream of given.Stream.made) {
    stream.event(welcome());
    stream.event({ type: "synced", sub: 1, seq: 9, count: 0, unknown: [] });
  }
  await given.clock.pass(20);
  assert.equal(given.client.connection.state, "live");
  return given;
}

test("an event stream that is silent for 40 s is replaced, although another one gets messages", async () => {
  const { client, clock, Stream } = await twoStreams();
  const [one, two] = Stream.made;
  for (let passed = 0; passed < 30_000; passed += 10_000) {
    await clock.pass(10_000);
    one.event({ type: "bookmark", seq: 10, at: "…" });
  }
  await clock.pass(9900);
  assert.deepEqual([client.connection.state, two.readyState], ["live", 1]);
  one.event({ type: "bookmark", seq: 10, at: "…" });
  await clock.pass(100);
  const { state, error } = client.connection;
  assert.deepEqual([state, error, one.readyState, two.readyState], ["offline", "no message for 40 s", 2, 2]);
  await clock.pass(1000);
  assert.deepEqual(
    Stream.made.slice(2).map((s) => s.url.search),
    ["?id=a", "?id=b"],
  );
});

test("an event stream that is closed while it is silent does not end the others", async () => {
  const { client, clock, Stream, followed } = await twoStreams();
  await clock.pass(30_000);
  Stream.made[0].event({ type: "bookmark", seq: 10, at: "…" });
  followed[1].close();
  await clock.pass(20_000);
  assert.deepEqual([client.connection.state, Stream.made[0].readyState], ["live", 1]);
});

test("the state is connecting until the last of the lost event streams is back", async () => {
  const { client, Stream, followed } = await twoStreams();
  const [one, two] = Stream.made;
  two.fail(0);
  one.event({ type: "status", source: "live", lag_seconds: 0 });
  assert.equal(client.connection.state, "connecting");
  two.event(welcome({ resumed: true }));
  two.event({ type: "synced", sub: 1, seq: 10, count: 0, unknown: [] });
  assert.equal(client.connection.state, "live");
  one.fail(0);
  followed[0].close();
  two.event({ type: "bookmark", seq: 11, at: "…" });
  assert.equal(client.connection.state, "live");
});

test("a stream that is lost before its welcome leaves the state connecting", async () => {
  const { client, Stream } = await streaming(["a", "b"]);
  const [one, two] = Stream.made;
  two.fail(0);
  one.event(welcome());
  assert.deepEqual([client.connection.state, client.connection.transport], ["connecting", "sse"]);
});

test("while the daemon is unreachable, only the websocket is tried", async () => {
  const { client, clock, Socket, Stream } = world({ answer: unreachable });
  follow(client, "a");
  await settle();
  for (let n = 0; n < 30; n++) {
    Socket.last.end();
    await clock.pass(20_000);
  }
  assert.deepEqual([Socket.made.length > 30, Stream.made.length], [true, 0]);
});

test("a proxy's 502 and a loading daemon count as unreachable", async () => {
  for (const status of [502, 503, 404]) {
    const { Stream, Socket } = await streaming(["a"], { answer: () => [status, {}] });
    assert.deepEqual([Stream.made.length, Socket.made.length], [0, 3]);
  }
});

test("after an outage the websocket is tried before the fallbacks", async () => {
  let up = false;
  const { client, clock, Socket, Stream } = world({ answer: () => (up ? EMPTY : unreachable()) });
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

test("one failed websocket does not change the transport, and a welcome resets the count", async () => {
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

test("a probe that succeeds after a welcome is ignored", async () => {
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

test("a close code of the daemon does not count as a blocked transport", async () => {
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

test("on an event stream a missing document is requested over REST", async () => {
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

test("without a token the browser reconnects an event stream, with or without resume", async () => {
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
  // An event stream gives no position for a websocket.
  const made = Stream.made.length;
  await clock.pass(41_000);
  assert.ok(Stream.made.length > made);
});

test("with a token each event stream has a ticket, and a new one after an error", async () => {
  let tickets = 0;
  const answer = (path) => (path === "/api/v1/ticket" ? [200, { ticket: `t${++tickets}`, expires_in: 30 }] : EMPTY);
  const { clock, Stream, fetch } = await streaming(["a", "b"], { answer, token: "secret" });
  assert.deepEqual(
    Stream.made.map((s) => s.url.search),
    ["?id=a&ticket=t1", "?id=b&ticket=t2"],
  );
  const calls = fetch.made.filter((r) => r.path === "/api/v1/ticket");
  assert.deepEqual(
    calls.map((r) => [r.method, r.headers.authorization]),
    Array(2).fill(["POST", "Bearer secret"]),
  );
  Stream.last.event(welcome());
  Stream.last.fail(0); // the browser would reconnect with a used ticket
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

test("a subscription that is closed before its ticket arrives opens no stream", async () => {
  let give;
  const answer = (path) => (path === "/api/v1/ticket" ? new Promise((done) => (give = done)) : EMPTY);
  const { Stream, followed } = await streaming(["a"], { answer, token: "secret" });
  followed[0].close();
  give([200, { ticket: "t" }]);
  await settle();
  assert.equal(Stream.made.length, 0);
});

test("a bye on an event stream sets the time of the next attempt", async () => {
  const { client, clock, Stream } = await streaming(["a"], { random: () => 1 });
  Stream.last.event(welcome());
  Stream.last.event({ type: "bye", code: 1012, retry_ms: [1000, 3000] });
  assert.equal(client.connection.state, "offline");
  assert.equal(client.connection.retry_at - clock.time, 3000);
  assert.equal(Stream.last.readyState, 2);
});

test("with more than four subscriptions it polls instead of using event streams", async () => {
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

test("every 5 minutes the websocket is tried, and used once it is welcomed", async () => {
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
  assert.deepEqual(Socket.last.sent, [
    { type: "hello", version: 1 },
    { type: "subscribe", id: 1, resume: false },
  ]);
  assert.deepEqual([client.connection.transport, Stream.last.readyState, followed[0].ids()], ["websocket", 2, ["x"]]);
  Socket.last.snapshot(1, [job("x", 3), job("y", 4)]);
  for (let n = 0; n < 60; n++) {
    await clock.pass(10_000);
    Socket.last.frame({ type: "bookmark", seq: 20 + n, at: "…" });
  }
  assert.deepEqual([Socket.made.length, followed[0].ids()], [4, ["x", "y"]]); // there are no more trials
});

for (const status of [401, 403]) {
  test(`HTTP status ${status} to a stream or a poll means refused, as on a websocket`, async () => {
    for (const transports of [["sse"], ["poll"]]) {
      let calls = 0;
      const { client, clock, fetch } = world({
        transports,
        answer: () => [status, {}],
        token: () => `t${++calls}`,
      });
      follow(client, "a");
      await clock.pass(60_000);
      assert.deepEqual([client.connection.state, calls, fetch.made.length], ["refused", 2, 2]);
    }
  });
}

test("polls that the token opens go on beside one that it does not open, until it does", async () => {
  let status = 403;
  const answer = (path) => (path.endsWith("/b") ? [status, job("b", 1)] : [200, job("a", 1)]);
  const { client, clock } = world({ transports: ["poll"], token: "of-a", answer });
  const [b, a] = ["b", "a"].map((id) => follow(client, id));
  await clock.pass(11_000);
  assert.deepEqual([a.ids(), a.update.connection.state, b.update.connection.state], [["a"], "live", "refused"]);
  status = 200;
  await clock.pass(6_000);
  assert.deepEqual([b.ids(), b.update.connection.state], [["b"], "live"]);
});

for (const token of [undefined, "of-a"]) {
  test(`event streams that ${token ?? "no token"} opens go on beside one that it does not open`, async () => {
    const answer = (path) => (path === "/api/v1/ticket" ? [200, { ticket: "t" }] : [403, {}]);
    const { client, clock, Stream } = world({ transports: ["sse"], token, answer });
    const [b, a] = ["b", "a"].map((id) => follow(client, id));
    await clock.pass(100);
    const [ofB, ofA] = Stream.made;
    ofA.event(welcome());
    ofB.fail(2);
    await clock.pass(100);
    ofA.event({ type: "snapshot", sub: 1, seq: 1, more: false, jobs: [job("a", 1)] });
    ofA.event({ type: "synced", sub: 1, seq: 1, count: 1, unknown: [] });
    await clock.pass(100);
    assert.deepEqual([a.ids(), a.update.connection.state, b.update.connection.state], [["a"], "live", "refused"]);
    assert.equal(Stream.made.length, 2);
    b.close();
    assert.equal(ofA.readyState, 1);
  });
}

test("an event stream that is refused for a moment is opened again", async () => {
  const { client, clock, Stream } = world({ transports: ["sse"], answer: () => [503, {}] });
  follow(client, "a");
  await clock.pass(100);
  Stream.last.fail(2);
  await settle();
  assert.deepEqual([client.connection.state, client.connection.error], ["offline", "api/v1/stream: HTTP status 503"]);
  await clock.pass(60_000);
  assert.equal(Stream.made.length > 1, true);
});

test("HTTP status 429 does not count as a blocked transport", async () => {
  const answer = (path) => (path === "/api/v1/ticket" ? [429, {}] : EMPTY);
  const { client, clock, fetch } = world({ transports: ["sse", "poll"], token: "t", answer });
  follow(client, "a");
  await clock.pass(60_000);
  assert.ok(fetch.made.length > 3);
  assert.ok(fetch.made.every(({ path }) => path === "/api/v1/ticket"));
});

test("a blocked websocket with a wrong token ends in the state refused", async () => {
  const { client } = await streaming(["a"], { answer: () => [401, {}], token: "wrong" });
  assert.equal(client.connection.state, "refused");
});

test("a transport that the environment lacks is not used", async () => {
  const there = { WebSocket: undefined, EventSource: undefined, transports: ["sse", "poll"] };
  const { client, clock, fetch } = world({ answer: () => EMPTY, ...there });
  const all = follow(client, {});
  await clock.pass(100);
  assert.deepEqual([all.update.synced, client.connection.transport, fetch.made.length], [true, "poll", 1]);
});
