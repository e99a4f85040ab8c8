/** The transports, websocket, event stream and polling, and the choice between them. */

import { isObject } from "./documents.js";
import { CloseCode, closeReason, fetchJob, parameters } from "./requests.js";

/** @import { Job, Wanted } from "../client.js" */
/** @import { Message, View } from "./replica.js" */
/** @import { Environment } from "./requests.js" */

/**
 * `Link`: an open connection of one transport. `TransportContext`: what a transport needs to open one.
 * @typedef {object} Link
 * @property {(view: View, resume: boolean) => void} subscribe
 * @property {(view: View) => void} unsubscribe
 * @property {(jobId: string, subs: number[]) => void} get  requests the whole document, which arrives as a `put`
 * @property {() => boolean} [isReconnecting]  a stream was lost, and no message has arrived on it since then
 * @property {() => void} close
 *
 * @typedef {object} TransportContext
 * @property {Environment} environment
 * @property {string | undefined} token
 * @property {() => import("./replica.js").Position | null} position
 * @property {import("./requests.js").SendRequest} request
 * @property {(message: Message, view?: View) => void} receive  with the view whose stream the message arrived on
 * @property {View[] | null} first  the views to subscribe with the hello; null: only after the welcome
 * @property {() => unknown} streamLost  an event stream was lost, and the browser reconnects it
 * @property {(code: number, reason: string) => void} end
 */

export const DEAD_AFTER = 40_000; // ms without a message; the daemon sends a bookmark every 10 s
const MAX_BLOCKED_ATTEMPTS = 2;
const MAX_STREAMS = 4; // a browser opens six HTTP/1.1 connections to a host, and requests need some of them

/** In the order of preference. @type {{[transport: string]: (context: TransportContext) => Link}} */
export const TRANSPORTS = { websocket, sse: eventStream, poll: polling };

/**
 * The transport to use. If REST requests succeed while a transport gets no welcome, a proxy may block it: after two
 * such attempts the next transport is used. If they fail too, the daemon is away, and the preferred one is tried again.
 */
export class TransportChoice {
  #blocked = 0; // attempts in a row that were not welcomed, although REST requests succeed

  /** @param {string[]} wanted @param {Environment} environment */
  constructor(wanted, { WebSocket, EventSource, fetch }) {
    /** @type {{[transport: string]: unknown}} */
    const needs = { websocket: WebSocket, sse: EventSource && fetch, poll: fetch };
    this.available = wanted.filter((transport) => needs[transport] !== undefined);
    if (this.available.length === 0) {
      throw new TypeError("no transport: pass options.WebSocket, EventSource or fetch");
    }
    this.current = this.preferred;
  }

  get preferred() {
    return this.available[0];
  }

  /**
   * `transport`, or polling instead of more event streams than a browser opens.
   * @param {string} transport
   * @param {number} views
   */
  fitting(transport, views) {
    return transport === "sse" && views > MAX_STREAMS && this.available.includes("poll") ? "poll" : transport;
  }

  /** @param {string} transport */
  use(transport) {
    this.current = transport;
  }

  welcomed() {
    this.#blocked = 0;
  }

  /** An attempt was not welcomed. @param {boolean} isReachable  whether a REST request succeeded at the same moment */
  failed(isReachable) {
    this.#blocked = isReachable ? this.#blocked + 1 : 0;
    if (!isReachable) this.current = this.preferred;
    if (this.#blocked < MAX_BLOCKED_ATTEMPTS) return;
    this.#blocked = 0;
    this.current = this.available[(this.available.indexOf(this.current) + 1) % this.available.length];
  }
}

// -- The transport `websocket`: one connection for all subscriptions, with resume.

// Characters in an address.
const MAX_SAID = 2000;
// Characters before the welcome, and those that each frame counts more than it has: the daemon reads 80 kB and 300 frames.
const MAX_EARLY = 24_000;
const FRAME = 120;

/** @param {TransportContext} context @returns {Link} */
function websocket({ environment, token, position, first, receive, end }) {
  const url = new URL("ws", environment.base);
  url.protocol = url.protocol.replace("http", "ws");
  const subscription = (/** @type {View} */ view, /** @type {boolean} */ resume) =>
    ({ ...view.wanted, type: "subscribe", id: view.id, resume }); // prettier-ignore
  /** @type {object[]} messages to send when it is open */
  let waiting = [
    { type: "hello", version: 1, token, resume: position() ?? undefined },
    ...(first ?? []).map((view) => subscription(view, false)),
  ];
  // In the address they save a round trip. A token does not belong there, as proxies log addresses.
  const said = encodeURIComponent(JSON.stringify(waiting));
  if (token === undefined && said.length <= MAX_SAID) {
    url.search = `say=${said}`;
    waiting = [];
  }
  const socket = new environment.WebSocket(url.href);
  let room = MAX_EARLY;
  /** Sends what waits, as far as there is room. */
  const flush = () => {
    while (socket.readyState === 1 && waiting.length > 0) {
      const text = JSON.stringify(waiting[0]);
      const left = room - text.length - FRAME;
      if (room < MAX_EARLY && left < 0) return;
      room = left;
      socket.send(text);
      waiting.shift();
    }
  };
  const send = (/** @type {object} */ message) => {
    waiting.push(message);
    flush();
  };
  socket.onopen = flush;
  socket.onmessage = (/** @type {{data: string}} */ event) => {
    decode(event.data, receive, end);
    room = Infinity;
    flush();
  };
  socket.onclose = (/** @type {{code: number, reason: string}} */ event) =>
    end(event.code, event.reason || `the connection was lost (${event.code})`);
  socket.onerror = () => {}; // `close` follows with the reason
  return {
    subscribe: (view, resume) => send(subscription(view, resume)),
    unsubscribe: (view) => send({ type: "unsubscribe", id: view.id }),
    get: (jobId) => send({ type: "get", job_id: jobId }),
    close() {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    },
  };
}

// -- The transports of several requests: a view that the token does not open is refused, and the others go on.

/** The message that refuses `view`; null if `error` means more than that. @param {View} view @param {unknown} error */
function refusal(view, error) {
  const [code, detail] = closeReason(error);
  return code === CloseCode.FORBIDDEN ? { type: "error", sub: view.id, code: "forbidden", detail } : null;
}

// -- The transport `sse`: server-sent events. A stream has one filter, so each subscription opens its own stream.

const LOST = "the event stream was lost";

/** @param {TransportContext} context @returns {Link} */
function eventStream({ environment, token, request, receive, streamLost, end }) {
  const { clock } = environment;
  /** @type {Map<View, {source: any, isLost: boolean, timer: unknown} | null>} null until the stream is opened */
  const streams = new Map();

  /** @param {View} view */
  async function open(view) {
    const query = parameters(view.wanted);
    // EventSource cannot send headers: the token is exchanged for a ticket, which is valid for one request.
    if (token !== undefined) {
      const response = await request("api/v1/ticket", { method: "POST" });
      query.set("ticket", (await response.json()).ticket);
    }
    if (!streams.has(view)) return;
    const source = new environment.EventSource(new URL(`api/v1/stream?${query}`, environment.base).href);
    const stream = { source, isLost: false, timer: /** @type {unknown} */ (null) };
    streams.set(view, stream);
    // The daemon sends bookmarks on each stream, so the messages of one say nothing about another.
    const expectMessage = () => {
      clock.clearTimeout(stream.timer);
      const reason = `no message for ${DEAD_AFTER / 1000} s`;
      stream.timer = clock.setTimeout(() => end(CloseCode.NONE, reason), DEAD_AFTER);
    };
    expectMessage();
    /** @param {any} message */
    const receiveOne = (message) => {
      // On its own stream each subscription has the number 1.
      if ("sub" in message) message.sub = view.id;
      receive(message, view);
    };
    source.onmessage = (/** @type {{data: string}} */ event) => {
      stream.isLost = false;
      expectMessage();
      decode(event.data, receiveOne, end);
    };
    // A message `event` is an event of that name, which `onmessage` does not get.
    source.addEventListener("event", (/** @type {any} */ event) => source.onmessage?.(event));
    source.onerror = () => {
      // The browser reconnects and resumes by itself, but not with a ticket, which is valid only once.
      stream.isLost = token === undefined && source.readyState === 0;
      if (stream.isLost) streamLost();
      else if (source.readyState === 2) askWhy(view);
      else end(CloseCode.NONE, LOST);
    };
  }

  /** An EventSource does not say why it was refused: requests the stream of `view` once more to learn it. @param {View} view */
  async function askWhy(view) {
    close(view);
    try {
      const response = await request(`api/v1/stream?${parameters(view.wanted)}`);
      await response.body?.cancel();
      end(CloseCode.NONE, LOST);
    } catch (error) {
      const message = refusal(view, error);
      if (message !== null) receive(message);
      else end(...closeReason(error));
    }
  }

  /** @param {View} view */
  function close(view) {
    const stream = streams.get(view);
    streams.delete(view);
    if (!stream) return;
    clock.clearTimeout(stream.timer);
    stream.source.onmessage = stream.source.onerror = null;
    stream.source.close();
  }

  return {
    subscribe(view) {
      streams.set(view, null);
      open(view).catch((error) => end(...closeReason(error)));
    },
    unsubscribe: close,
    get(jobId, subs) {
      fetchJob(request, jobId).then(
        (job) => job && receive({ type: "put", sub: subs, job_id: jobId, rev: job.rev, job }),
        (error) => end(...closeReason(error)),
      );
    },
    isReconnecting: () => [...streams.values()].some((stream) => stream?.isLost),
    close: () => [...streams.keys()].forEach(close),
  };
}

// -- The transport `poll`: all subscriptions are requested over REST every POLL_EVERY ms.

const POLL_EVERY = 5000;

const Round = Object.freeze({
  /** The timer of the next round runs. */ WAITING: "waiting",
  /** A round is in progress. */ POLLING: "polling",
  /** A subscription came during the round, which is repeated at once. */ POLL_AGAIN: "poll again",
  CLOSED: "closed",
});

/** @param {TransportContext} context @returns {Link} */
function polling({ environment: { clock }, request, receive, end }) {
  /** @type {Set<View>} */
  const views = new Set();
  /** @type {Map<string, {etag: string | null, job: Job}>} */
  const cache = new Map();
  /** @type {unknown} */
  let timer;
  let welcomed = false;
  /** @type {typeof Round[keyof typeof Round]} */
  let state = Round.WAITING;

  /** @param {number} ms */
  function schedule(ms) {
    state = Round.WAITING;
    clock.clearTimeout(timer);
    timer = clock.setTimeout(poll, ms);
  }

  async function poll() {
    state = Round.POLLING;
    try {
      const refused = [];
      for (const view of [...views]) {
        try {
          await pollView(view);
        } catch (error) {
          const message = refusal(view, error);
          if (message === null) throw error;
          refused.push(message);
        }
      }
      refused.forEach((message) => receive(message));
      endRound();
    } catch (error) {
      end(...closeReason(error));
    }
  }

  function endRound() {
    if (state === Round.CLOSED) return;
    receive({ type: "pong" }); // without views to poll, the connection must not count as silent
    schedule(state === Round.POLL_AGAIN ? 0 : POLL_EVERY);
  }

  /** @param {View} view */
  async function pollView(view) {
    const jobs = [];
    const unknown = [];
    if (view.wanted.jobs === undefined) {
      const query = parameters({ ...view.wanted, logs: undefined });
      const page = await request(`api/v1/jobs?limit=500&steps=1&${query}`);
      jobs.push(...(await page.json()).jobs);
    }
    for (const name of view.wanted.jobs ?? []) {
      const job = await fetchJob(request, name, cache);
      if (job === null) unknown.push(name);
      else if (matches(job, view.wanted)) jobs.push(job);
    }
    if (state === Round.CLOSED || !views.has(view)) return;
    if (!welcomed) receive({ type: "welcome", epoch: null, resumed: false });
    welcomed = true;
    receive({ type: "snapshot", sub: view.id, jobs });
    receive({ type: "synced", sub: view.id, unknown });
  }

  return {
    subscribe(view) {
      views.add(view);
      if (state === Round.WAITING) schedule(0);
      else if (state === Round.POLLING) state = Round.POLL_AGAIN;
    },
    unsubscribe(view) {
      views.delete(view);
      const wanted = new Set([...views].flatMap((each) => each.wanted.jobs ?? []));
      for (const name of cache.keys()) if (!wanted.has(name)) cache.delete(name);
    },
    get() {}, // polling receives whole documents only
    close() {
      state = Round.CLOSED;
      clock.clearTimeout(timer);
    },
  };
}

/** @param {Job} job @param {Wanted} wanted */
function matches(job, wanted) {
  return /** @type {const} */ (["status", "job_type", "context_id", "instance"]).every(
    (member) => !wanted[member]?.length || wanted[member].includes(/** @type {any} */ (job[member])),
  );
}

// -- The messages of a frame or an event.

/**
 * Passes on the messages of one frame or event, which holds one message or an array of them.
 * @param {string} text
 * @param {(message: any) => void} receive
 * @param {(code: number, reason: string) => void} end  called if a message is invalid
 */
function decode(text, receive, end) {
  try {
    for (const message of [JSON.parse(text)].flat()) if (isObject(message)) receive(message);
  } catch (error) {
    end(CloseCode.NONE, `a message is invalid: ${closeReason(error)[1]}`);
  }
}
