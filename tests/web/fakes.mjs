// Fakes of everything that the client uses: a clock, sockets, event streams, requests, a page. All time is virtual.

import assert from "node:assert/strict";
import { Correlator } from "../../correlator/web/client.js";

/** A random number generator with a seed (mulberry32). */
export function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Runs all promise callbacks that are due, without advancing the time. */
export async function settle() {
  for (let i = 0; i < 8; i++) await new Promise((done) => setImmediate(done));
}

export class Clock {
  time = 1_000_000;
  timers = new Map();
  last = 0;

  constructor(random = () => 0.5) {
    this.random = random;
    this.now = () => this.time;
    this.setTimeout = (callback, ms) => {
      this.timers.set(++this.last, { at: this.time + Math.max(0, ms), callback });
      return this.last;
    };
    this.clearTimeout = (timer) => void this.timers.delete(timer);
  }

  /** Advances the time by `ms`. Each timer is called at its own time. */
  async pass(ms) {
    const until = this.time + ms;
    await settle();
    for (;;) {
      const due = [...this.timers].filter(([, t]) => t.at <= until).sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0];
      if (due === undefined) break;
      this.timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].callback();
      await settle();
    }
    this.time = until;
  }
}

/** A class of websockets whose server is the test. `made` has all of them. */
export function sockets() {
  return class Socket {
    static made = [];
    static get last() {
      return this.made.at(-1);
    }

    readyState = 0;
    sent = [];
    closedWith = null;

    /** `sent` begins with the messages in the address, and `url` is without them. */
    constructor(url) {
      const address = new URL(url);
      this.said = JSON.parse(address.searchParams.get("say") ?? "[]");
      this.sent.push(...this.said);
      address.search = "";
      this.url = address.href;
      Socket.made.push(this);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close(code) {
      this.closedWith = code;
      this.readyState = 3;
    }

    open() {
      this.readyState = 1;
      this.onopen?.();
    }

    /** One frame: a message, or several as an array. */
    frame(...messages) {
      this.onmessage?.({ data: JSON.stringify(messages.length === 1 ? messages[0] : messages) });
    }

    end(code = 1006, reason = "") {
      this.readyState = 3;
      this.onerror?.({});
      this.onclose?.({ code, reason });
    }

    welcome({ epoch = "e1", seq = 100, resumed = false } = {}) {
      this.open();
      this.frame({ type: "welcome", epoch, seq, resumed, ping_seconds: 25 });
    }

    /** A whole snapshot of one subscription. */
    snapshot(sub, jobs, { seq = 100, unknown = [] } = {}) {
      this.frame({ type: "snapshot", sub, seq, more: false, jobs });
      this.frame({ type: "synced", sub, seq, count: jobs.length, unknown });
    }

    sentOf(type) {
      return this.sent.filter((message) => message.type === type);
    }
  };
}

export function streams() {
  return class Stream {
    static made = [];
    static get last() {
      return this.made.at(-1);
    }

    readyState = 0;
    listeners = {};

    constructor(url) {
      this.url = new URL(url);
      Stream.made.push(this);
    }

    close() {
      this.readyState = 2;
    }

    event(message, id = "") {
      this.readyState = 1;
      this.onmessage?.({ data: JSON.stringify(message), lastEventId: id });
    }

    addEventListener(name, listener) {
      this.listeners[name] = listener;
    }

    /** An event with a name, which `onmessage` does not get. */
    named(name, message, id = "") {
      this.listeners[name]({ data: JSON.stringify(message), lastEventId: id });
    }

    fail(readyState = 2) {
      this.readyState = readyState;
      this.onerror?.({});
    }
  };
}

/** `fetch`. `answer(path, request)` returns [status, body, headers], or an Error if the daemon is unreachable. */
export function requests(answer) {
  const fetch = async (url, { method = "GET", headers, signal } = {}) => {
    const { pathname, search } = new URL(url);
    const request = { method, path: pathname + search, headers: Object.fromEntries(headers), signal };
    fetch.made.push(request);
    const given = await answer(request.path, request);
    if (given instanceof Error) throw given;
    const [status, body, more = {}] = given;
    return new Response(status === 304 || body === undefined ? null : JSON.stringify(body), {
      status,
      headers: more,
    });
  };
  fetch.made = [];
  return fetch;
}

export const unreachable = () => new TypeError("fetch failed");

/** Replaces the browser's document by one that can be hidden, until `leave` is called. */
export function page() {
  const fake = Object.assign(new EventTarget(), { visibilityState: "visible" });
  const window = new EventTarget();
  const names = ["document", "addEventListener", "removeEventListener"];
  const were = names.map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]);
  globalThis.document = fake;
  globalThis.addEventListener = window.addEventListener.bind(window);
  globalThis.removeEventListener = window.removeEventListener.bind(window);
  return {
    show(visibilityState) {
      fake.visibilityState = visibilityState;
      fake.dispatchEvent(new Event("visibilitychange"));
    },
    online: () => window.dispatchEvent(new Event("online")),
    leave() {
      for (const [name, was] of were) was ? Object.defineProperty(globalThis, name, was) : delete globalThis[name];
    },
  };
}

/** A client that uses the fakes. */
export function world({ answer = unreachable, random, ...options } = {}) {
  const clock = new Clock(random);
  const [Socket, Stream, fetch] = [sockets(), streams(), requests(answer)];
  const seams = { clock, WebSocket: Socket, EventSource: Stream, fetch };
  const client = new Correlator({ url: "http://correlator.test:8686", ...seams, ...options });
  return { client, clock, Socket, Stream, fetch };
}

/** A subscription that records its updates. */
export function follow(client, what, more) {
  const updates = [];
  const subscription = client.subscribe(what, (update) => updates.push(update), more);
  return Object.assign(subscription, {
    updates,
    ids: () => [...subscription.update.jobs.keys()].sort(),
    job: (id) => subscription.update.jobs.get(id),
  });
}

/** A subscription to all jobs on a websocket that is welcomed and synced with `jobs`. */
export async function synced(jobs = [], options = {}) {
  const given = world(options);
  const all = follow(given.client, {}, options.more);
  await settle();
  given.Socket.last.welcome(options.welcome);
  given.Socket.last.snapshot(1, jobs, options);
  await given.clock.pass(20);
  assert.equal(all.update.synced, true);
  return { ...given, all };
}

export function job(id, rev, members = {}) {
  return { job_id: id, rev, status: "running", external_ids: [], context_id: null, started_at: null, ...members };
}

export function put(sub, document, seq = document.rev) {
  return { type: "put", sub: [sub].flat(), seq, job_id: document.job_id, rev: document.rev, job: document };
}

export function delta(sub, id, base, rev, set) {
  return { type: "delta", sub: [sub].flat(), seq: rev, job_id: id, base, rev, set };
}

/** Ends the connection, waits for the next socket and opens it. Returns its hello. */
export async function lose({ clock, Socket }, code = 1006) {
  const before = Socket.made.length;
  Socket.last.end(code);
  for (let waited = 0; Socket.made.length === before; waited += 50) {
    assert.ok(waited <= 20_000);
    await clock.pass(50);
  }
  Socket.last.open();
  return Socket.last.sent[0];
}

export const EMPTY = [200, { jobs: [], next_cursor: null }];
export const welcome = (more) => ({ type: "welcome", epoch: "e1", seq: 9, resumed: false, ...more });

/** A client that uses event streams: two websockets have failed while REST requests succeed. */
export async function streaming(subscriptions, { answer = () => EMPTY, ...options } = {}) {
  const given = world({ answer, ...options });
  const followed = subscriptions.map((what) => follow(given.client, what));
  await settle();
  for (let n = 0; n < 2; n++) {
    given.Socket.last.end();
    await given.clock.pass(1000);
  }
  return { ...given, followed };
}

/** A client that polls: two websockets and two event streams have failed while REST requests succeed. */
export async function polling(subscriptions, options) {
  const given = await streaming(subscriptions, options);
  for (let n = 0; n < 2; n++) {
    given.Stream.last.fail();
    await given.clock.pass(2000);
  }
  return given;
}
