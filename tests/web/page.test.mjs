// The client in a page: visibility, callbacks, closing.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Correlator } from "../../correlator/web/client.js";
import { follow, job, lose, page, put, settle, synced, world } from "./fakes.mjs";

test("a page that is hidden for 30 s has no connection, and resumes when it is shown", async (t) => {
  const browser = page();
  t.after(browser.leave);
  const all = await synced([job("x", 3)]);
  browser.show("hidden");
  await all.clock.pass(29_000);
  browser.show("visible");
  all.Socket.last.frame({ type: "bookmark", seq: 120, at: "…" });
  browser.show("hidden");
  await all.clock.pass(5000);
  all.Socket.last.frame({ type: "bookmark", seq: 130, at: "…" });
  await all.clock.pass(24_900);
  assert.deepEqual([all.client.connection.state, all.Socket.last.closedWith], ["live", null]);
  await all.clock.pass(200);
  assert.deepEqual([all.client.connection.state, all.Socket.last.closedWith], ["paused", 1000]);
  browser.online();
  await all.clock.pass(600_000);
  assert.deepEqual([all.Socket.made.length, all.all.ids()], [1, ["x"]]);
  browser.show("visible");
  await settle();
  assert.equal(all.client.connection.state, "connecting");
  all.Socket.last.open();
  assert.deepEqual(all.Socket.last.sent[0].resume, { epoch: "e1", seq: 130 });
});

test("with pauseWhenHidden false a hidden page keeps its connection", async (t) => {
  const browser = page();
  t.after(browser.leave);
  const all = await synced([], { pauseWhenHidden: false });
  browser.show("hidden");
  for (let i = 0; i < 6; i++) {
    await all.clock.pass(10_000);
    all.Socket.last.frame({ type: "bookmark", seq: 100 + i, at: "…" });
  }
  assert.deepEqual([all.client.connection.state, all.Socket.made.length], ["live", 1]);
});

for (const reason of ["online", "shown"]) {
  test(`an offline client reconnects at once when the page is ${reason}`, async (t) => {
    const browser = page();
    t.after(browser.leave);
    const all = await synced([], { random: () => 1 });
    all.Socket.last.end(4400);
    await all.clock.pass(100);
    assert.equal(all.Socket.made.length, 1);
    if (reason === "online") browser.online();
    else browser.show("visible");
    await settle();
    assert.deepEqual([all.client.connection.state, all.Socket.made.length], ["connecting", 2]);
    all.Socket.last.welcome();
    await all.clock.pass(21_000);
    assert.equal(all.Socket.made.length, 2); // the retry timer was cleared
  });
}

test("onConnection calls its callback at once and after each change, until it is stopped", async () => {
  const { client, clock, Socket } = world();
  const states = [];
  const stop = client.onConnection(({ state }) => states.push(state));
  await settle();
  assert.deepEqual(states, ["connecting"]);
  follow(client, "a");
  await clock.pass(20);
  Socket.last.welcome();
  await clock.pass(20);
  Socket.last.end();
  await clock.pass(20);
  stop();
  await clock.pass(1000);
  assert.deepEqual(states, ["connecting", "live", "offline"]);
});

test("after close onConnection does not call its callback", async () => {
  const { client, clock } = world();
  client.close();
  const states = [];
  client.onConnection(({ state }) => states.push(state))();
  client.onConnection(({ state }) => states.push(state));
  await clock.pass(100);
  assert.deepEqual(states, []);
});

test("connection.error has the daemon's error until the next welcome", async () => {
  const all = await synced();
  all.Socket.last.frame({ type: "error", sub: 1, code: "bad_request", detail: "no such status" });
  assert.equal(all.client.connection.error, "bad_request: no such status");
  await lose(all);
  all.Socket.last.frame({ type: "welcome", epoch: "e1", seq: 1, resumed: false });
  assert.equal(all.client.connection.error, null);
});

test("close leaves no socket, no timer and no callback", async () => {
  const all = await synced();
  const before = all.all.updates.length;
  all.Socket.last.frame(put(1, job("x", 101)));
  all.client.close();
  await all.clock.pass(600_000);
  assert.deepEqual([all.Socket.last.closedWith, all.clock.timers.size, all.all.updates.length], [1000, 0, before]);
  assert.throws(() => all.client.subscribe("a", () => {}), TypeError);
});

test("a closed subscription is not called any more", async () => {
  const all = await synced();
  const before = all.all.updates.length;
  all.Socket.last.frame(put(1, job("x", 101)));
  all.all.close();
  all.all.close();
  await all.clock.pass(100);
  assert.equal(all.all.updates.length, before);
  assert.equal(all.Socket.last.sentOf("unsubscribe").length, 1);
});

test("the websocket's URL keeps the path, turns https into wss, and drops query and fragment", async () => {
  for (const [url, expected] of [
    ["https://gui.test/correlator", "wss://gui.test/correlator/ws"],
    [new URL("http://h:1/a/?b#c"), "ws://h:1/a/ws"],
  ]) {
    const { client, Socket } = world({ url });
    follow(client, "a");
    await settle();
    assert.equal(Socket.last.url, expected);
  }
});

test("a client without any transport throws a TypeError", () => {
  assert.throws(() => new Correlator({ url: "http://h", transports: [] }), TypeError);
});
