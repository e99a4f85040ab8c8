/**
 * The browser client of a correlator: follows jobs over one connection, and tells what changed.
 *
 * What always holds: a job that is shown is a whole document as the daemon had it; it never goes back to an older
 * revision; and after any interruption what is shown becomes what the daemon has, by resuming or by a fresh snapshot.
 *
 * From the top: the fold of messages (`merge`, `Replica`), the three ways to a daemon (`ways`), and the `Correlator`,
 * which chooses among them, reconnects, and hands updates out. The messages are those of docs/protocol.md.
 */

/** @typedef {import("./client.js").Connection} Connection */
/** @typedef {import("./client.js").Job} Job */
/** @typedef {import("./client.js").LogLine} LogLine */
/** @typedef {import("./client.js").Options} Options */
/** @typedef {import("./client.js").Update} Update */
/** @typedef {import("./client.js").Wanted} Wanted */
/** @typedef {{epoch: string, seq: number}} Position */
/** @typedef {{type: string, [member: string]: any}} Message */

/**
 * A way's connection, and what a way is given to make one: where to go, whom to tell.
 * @typedef {object} Link
 * @property {(view: View, resume: boolean) => void} subscribe
 * @property {(view: View) => void} unsubscribe
 * @property {(jobId: string, subs: number[]) => void} get  its whole document is to come as a `put`
 * @property {() => void} close
 *
 * @typedef {object} Surroundings
 * @property {URL} base  ends with a slash
 * @property {string | undefined} token
 * @property {NonNullable<Options["clock"]>} clock
 * @property {{WebSocket: any, EventSource: any}} seams
 * @property {() => Position | null} position
 * @property {(path: string, init?: RequestInit) => Promise<Response>} ask  rejects with a `Refusal`
 * @property {(message: Message, view?: View) => void} receive
 * @property {() => unknown} away  an event stream is away; the browser is bringing it back
 * @property {(code: number, reason: string) => void} end
 *
 * @typedef {object} Attempt
 * @property {string} way
 * @property {Link | null} link  null until there is a token to open it with
 * @property {string} [token]
 * @property {number} heard  when its last message came
 * @property {number | null} welcomed
 * @property {Message | null} bye
 * @property {unknown} watch  a timer
 * @property {boolean} over
 */

const BACKOFF = 500;
const BACKOFF_MOST = 20_000;
const RESTART_WITHIN = [0, 5000]; // where a restarting daemon did not get to say its own
const LIVED_AFTER = 5000; // a connection that lived this long was a good one: the next failure is a first one
const WELCOME_WITHIN = 15_000;
const STALE_AFTER = 25_000; // bookmarks come every 10 s
const DEAD_AFTER = 40_000;
const PAUSE_AFTER = 30_000;
const POLL_EVERY = 5000;
const ANSWER_WITHIN = 15_000;
const BETTER_WAY_EVERY = 300_000;
const VAIN_ATTEMPTS = 2;
const MAX_STREAMS = 4; // browsers make six connections to a host over HTTP/1.1, and requests need some of them
const FRAME = 16; // ms between two updates

const RESTART = 1012;
const TRY_LATER = 1013;
const OUR_FAULT = [1009, 4400]; // trying again quickly would only be the same again
const REFUSED = [4401, 4403];
const SAID = [1009, RESTART, TRY_LATER];
const LOST = [0, 1005, 1006]; // no close frame was seen

/**
 * `target` with a JSON merge patch applied (RFC 7386): a new value; the arguments stay as they are.
 * @param {any} target
 * @param {any} patch
 * @returns {any}
 */
export function merge(target, patch) {
  if (!isObject(patch)) return patch;
  // In a Map, as assigning to a member named "__proto__" would do something else.
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, merge(merged.get(name), value));
  }
  return Object.fromEntries(merged);
}

/** What one subscription shows, and what of it has not been told yet. */
class View {
  /** @type {Set<string>} */ members = new Set();
  /** @type {Set<string> | null} what came since a snapshot can come: if one does, these are all */ arriving = null;
  /** A snapshot is under way. Until it is complete, `members` are shown. */ renewed = false;
  /** Complete on this connection. */ current = false;
  /** Was complete at the position that the replica has: a resume can go on from there. */ resumable = false;
  /** Was complete once. */ synced = false;
  /** @type {string[]} */ unknown = [];
  /** @type {Set<string>} */ changed = new Set();
  /** @type {LogLine[]} */ lines = [];
  dropped = 0;
  touched = true;

  /**
   * @param {number} id
   * @param {Wanted} wanted  as it is sent: `logs` only where somebody listens
   * @param {(update: Update) => void} onChange
   * @param {((lines: LogLine[], dropped: number) => void) | undefined} onLog
   * @param {Connection} connection
   */
  constructor(id, wanted, onChange, onLog, connection) {
    this.id = id;
    this.wanted = wanted;
    this.onChange = onChange;
    this.onLog = onLog;
    /** @type {Update} */
    this.update = { jobs: new Map(), job: null, changed: new Set(), unknown: [], synced: false, connection };
  }

  /** @param {string} jobId */
  touch(jobId) {
    this.changed.add(jobId);
    this.touched = true;
  }
}

/** What the daemon has told, folded: documents, and to which subscriptions they belong. No clock, no I/O. */
class Replica {
  /** @type {Map<number, View>} */ views = new Map();
  /** @type {Position | null} where a resume can go on */ position = null;
  /** @type {string | null} null: polling does not tell whose revisions it brings, so they are not compared */
  #epoch = null;
  /** @type {Map<string, {job: Job, epoch: string | null}>} one for all views */ #held = new Map();
  /** @type {Map<string, Set<View>>} whole documents on their way, in the order of asking, and who is to have them */
  #asked = new Map();
  #resumable = false;

  /** @param {string | null} epoch @param {boolean} resumed @param {boolean} resumable  whether positions count here */
  welcome(epoch, resumed, resumable) {
    this.#epoch = epoch;
    this.#resumable = resumable;
    this.#asked.clear();
    for (const view of this.views.values()) view.current = false;
    if (resumed) return;
    this.position = null;
    for (const view of this.views.values()) view.resumable = false;
  }

  /** What was missed is to come, or a whole snapshot: the daemon chooses. @param {View} view */
  expect(view) {
    view.current = view.renewed = false;
    view.arriving = new Set();
  }

  /** @param {View} view */
  remove(view) {
    this.views.delete(view.id);
    this.#forget(view.members);
  }

  /** @param {View} view @returns {Map<string, Job>} */
  jobs(view) {
    const jobs = new Map();
    for (const id of view.members) {
      const held = this.#held.get(id);
      if (held) jobs.set(id, held.job);
    }
    return jobs;
  }

  /**
   * Types and members that are not known here are passed over: the protocol may grow.
   * @param {Message} message
   * @returns {string | null} a job to ask for, as its patch is on a revision that is not the one held
   */
  receive(message) {
    const missing = this.#fold(message, this.#named(message.sub));
    // Before everything is complete, a position would claim what has not come yet.
    if (this.#resumable && this.#epoch !== null && Number.isInteger(message.seq) && this.#isComplete()) {
      this.position = { epoch: this.#epoch, seq: message.seq };
    }
    return missing;
  }

  /** @param {Message} message @param {View[]} views @returns {string | null} */
  #fold(message, views) {
    switch (message.type) {
      case "snapshot":
        for (const view of views) {
          view.arriving ??= new Set();
          view.renewed = true;
          view.current = view.resumable = false;
        }
        for (const job of message.jobs) this.#put(job, views);
        return null;
      case "synced":
        for (const view of views) this.#synced(view, message.unknown ?? []);
        return null;
      case "put":
        this.#put(message.job, views);
        return null;
      case "delta":
        return this.#delta(message, views);
      case "delete":
        for (const view of views) {
          this.#asked.get(message.job_id)?.delete(view);
          view.arriving?.delete(message.job_id);
          if (view.members.delete(message.job_id)) view.touch(message.job_id);
        }
        this.#forget([message.job_id]);
        return null;
      case "log":
        for (const view of views) hear(view, message);
        return null;
      case "resync":
        this.position = null;
        // It does not say of whom: whoever gets no snapshot keeps what it has, and only a position is not had again.
        for (const view of this.views.values()) if (view.current) this.expect(view);
        return null;
      case "error":
        // It does not say of which; the daemon answers in order.
        if (message.code === "not_found") this.#asked.delete([...this.#asked.keys()][0]);
        return null;
      default:
        return null;
    }
  }

  /** @param {Job} job @param {View[]} views */
  #put(job, views) {
    const waiting = this.#asked.get(job.job_id) ?? [];
    this.#asked.delete(job.job_id);
    if (this.#isNews(job)) this.#hold(job);
    for (const view of [...views, ...waiting]) this.#join(view, job);
  }

  /** @param {Message} message @param {View[]} views @returns {string | null} */
  #delta(message, views) {
    const held = this.#held.get(message.job_id);
    const job = held?.epoch === this.#epoch ? held?.job : undefined;
    if (job !== undefined && job.rev === message.base) {
      this.#hold({ ...merge(job, message.set), rev: message.rev });
    } else if (job === undefined || job.rev < message.rev) {
      const waiting = this.#asked.get(message.job_id);
      this.#asked.set(message.job_id, new Set([...(waiting ?? []), ...views]));
      return waiting === undefined ? message.job_id : null;
    }
    for (const view of views) this.#join(view, /** @type {any} */ (this.#held.get(message.job_id)).job);
    return null;
  }

  /** @param {Job} job */
  #isNews(job) {
    const held = this.#held.get(job.job_id);
    if (held === undefined) return true;
    if (this.#epoch === null) return JSON.stringify(held.job) !== JSON.stringify(job);
    return held.epoch !== this.#epoch || job.rev > held.job.rev;
  }

  /** @param {Job} job */
  #hold(job) {
    this.#held.set(job.job_id, { job, epoch: this.#epoch });
    for (const view of this.views.values()) if (view.members.has(job.job_id)) view.touch(job.job_id);
  }

  /** @param {View} view @param {Job} job */
  #join(view, job) {
    view.arriving?.add(job.job_id);
    if (view.members.has(job.job_id)) return;
    view.members.add(job.job_id);
    view.touch(job.job_id);
    const names = [job.job_id, job.context_id, ...(job.external_ids ?? [])];
    view.unknown = view.unknown.filter((name) => !names.includes(name));
  }

  /** @param {View} view @param {string[]} unknown */
  #synced(view, unknown) {
    const before = view.members;
    if (view.arriving !== null && view.renewed) {
      view.members = view.arriving;
      const gone = [...before].filter((id) => !view.members.has(id));
      for (const id of gone) view.touch(id);
      this.#forget(gone);
    }
    view.unknown = unknown;
    view.arriving = null;
    view.renewed = false;
    view.current = view.resumable = view.synced = view.touched = true;
  }

  /** Documents that nobody shows any more need no memory. @param {Iterable<string>} ids */
  #forget(ids) {
    const views = [...this.views.values()];
    for (const id of ids) if (!views.some((view) => view.members.has(id))) this.#held.delete(id);
  }

  #isComplete() {
    if (this.#asked.size > 0) return false;
    for (const view of this.views.values()) if (!view.current) return false;
    return true;
  }

  /** @param {unknown} sub @returns {View[]} */
  #named(sub) {
    const ids = Array.isArray(sub) ? sub : [sub];
    return ids.flatMap((id) => this.views.get(id) ?? []);
  }
}

/** @param {View} view @param {Message} message */
function hear(view, message) {
  if (view.onLog === undefined) return;
  view.touched = true;
  if (message.dropped !== undefined) {
    view.dropped += message.dropped;
  } else {
    const { type: _type, sub: _sub, ...line } = message;
    view.lines.push(/** @type {any} */ (line));
  }
}

/** The daemon did not answer a request as wished; `code` is the websocket's close code for the same, 0: not reached. */
class Refusal extends Error {
  /** @param {number} code @param {string} reason */
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}

/** From the best on. @type {{[way: string]: (at: Surroundings) => Link}} */
const ways = {
  websocket(at) {
    const url = new URL("ws", at.base);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new at.seams.WebSocket(url.href);
    /** @param {object} message */
    const send = (message) => {
      if (socket.readyState === 1) socket.send(JSON.stringify(message));
    };
    socket.onopen = () => send({ type: "hello", version: 1, token: at.token, resume: at.position() ?? undefined });
    socket.onmessage = (/** @type {{data: string}} */ event) => read(at, event.data, at.receive);
    socket.onclose = (/** @type {{code: number, reason: string}} */ event) =>
      at.end(event.code, event.reason || `the connection was lost (${event.code})`);
    socket.onerror = () => {}; // `close` follows, and says more
    return {
      subscribe: (view, resume) => send({ ...view.wanted, type: "subscribe", id: view.id, resume }),
      unsubscribe: (view) => send({ type: "unsubscribe", id: view.id }),
      get: (jobId) => send({ type: "get", job_id: jobId }),
      close() {
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close(1000);
      },
    };
  },

  /** A stream has one filter, and so every subscription has a stream of its own. */
  sse(at) {
    /** @type {Map<View, any>} */
    const streams = new Map();
    /** @param {View} view */
    const open = async (view) => {
      const query = parameters(view.wanted);
      // A stream cannot carry headers: the token goes into a ticket, good for one request.
      if (at.token !== undefined) {
        const answer = await at.ask("api/v1/ticket", { method: "POST" });
        query.set("ticket", (await answer.json()).ticket);
      }
      if (!streams.has(view)) return;
      const stream = new at.seams.EventSource(new URL(`api/v1/stream?${query}`, at.base).href);
      streams.set(view, stream);
      stream.onmessage = (/** @type {{data: string}} */ event) =>
        read(at, event.data, (message) => {
          // On its own stream every subscription is number 1.
          if ("sub" in message) message.sub = view.id;
          at.receive(message, view);
        });
      stream.onerror = () => {
        // The browser comes back by itself, and says where it was; but not with a ticket that is used.
        if (at.token === undefined && stream.readyState === 0) at.away();
        else at.end(0, "the event stream was lost");
      };
    };
    /** @param {View} view */
    const close = (view) => {
      const stream = streams.get(view);
      streams.delete(view);
      if (stream) stream.onmessage = stream.onerror = null;
      stream?.close();
    };
    return {
      subscribe(view) {
        streams.set(view, null);
        open(view).catch((error) => at.end(...because(error)));
      },
      unsubscribe: close,
      get(jobId, subs) {
        whole(at, jobId).then(
          (job) => job && at.receive({ type: "put", sub: subs, job_id: jobId, rev: job.rev, job }),
          (error) => at.end(...because(error)),
        );
      },
      close: () => [...streams.keys()].forEach(close),
    };
  },

  poll(at) {
    /** @type {Set<View>} */
    const views = new Set();
    /** @type {Map<string, {etag: string | null, job: Job}>} */
    const seen = new Map();
    /** @type {unknown} */
    let timer;
    let [over, busy, again, greeted] = [false, false, false, false];

    /** @param {number} ms */
    const next = (ms) => {
      at.clock.clearTimeout(timer);
      timer = at.clock.setTimeout(round, ms);
    };

    async function round() {
      busy = true;
      again = false;
      try {
        for (const view of [...views]) await look(view);
        if (over) return;
        at.receive({ type: "pong" }); // nothing to ask for is no silence
        next(again ? 0 : POLL_EVERY);
      } catch (error) {
        at.end(...because(error));
      }
      busy = false;
    }

    /** @param {View} view */
    async function look(view) {
      const jobs = [];
      const unknown = [];
      if (view.wanted.jobs === undefined) {
        const query = parameters({ ...view.wanted, logs: undefined });
        const page = await at.ask(`api/v1/jobs?limit=500&steps=1&${query}`);
        jobs.push(...(await page.json()).jobs);
      }
      for (const name of view.wanted.jobs ?? []) {
        const job = await whole(at, name, seen);
        if (job === null) unknown.push(name);
        else if (matches(job, view.wanted)) jobs.push(job);
      }
      if (over || !views.has(view)) return;
      if (!greeted) at.receive({ type: "welcome", epoch: null, resumed: false });
      greeted = true;
      at.receive({ type: "snapshot", sub: view.id, jobs });
      at.receive({ type: "synced", sub: view.id, unknown });
    }

    return {
      subscribe(view) {
        views.add(view);
        if (busy) again = true;
        else next(0);
      },
      unsubscribe: (view) => void views.delete(view),
      get() {}, // a poll brings whole documents only
      close() {
        over = true;
        at.clock.clearTimeout(timer);
      },
    };
  },
};

/**
 * Hand on what one frame or event holds: a message, or an array of them.
 * @param {Surroundings} at
 * @param {string} text
 * @param {(message: any) => void} receive
 */
function read(at, text, receive) {
  try {
    for (const message of [JSON.parse(text)].flat()) if (isObject(message)) receive(message);
  } catch (error) {
    at.end(0, `what came is not understood: ${because(error)[1]}`);
  }
}

/**
 * A job's document by any of its IDs, null where there is none; `seen` spares what has not changed.
 * @param {Surroundings} at
 * @param {string} name
 * @param {Map<string, {etag: string | null, job: Job}>} [seen]
 * @returns {Promise<Job | null>}
 */
async function whole(at, name, seen) {
  const held = seen?.get(name);
  const headers = held?.etag ? { "If-None-Match": held.etag } : undefined;
  const response = await at.ask(`api/v1/jobs/${encodeURIComponent(name)}`, { headers });
  if (response.status === 304 && held !== undefined) return held.job;
  const job = response.status === 404 ? null : await response.json();
  if (job === null) seen?.delete(name);
  else seen?.set(name, { etag: response.headers.get("ETag"), job });
  return job;
}

/** @param {Job} job @param {Wanted} wanted */
function matches(job, wanted) {
  return /** @type {const} */ (["status", "job_type", "context_id"]).every(
    (kind) => !wanted[kind]?.length || wanted[kind].includes(String(job[kind])),
  );
}

/** @param {Wanted} wanted  */
function parameters({ jobs, ...filters }) {
  const query = new URLSearchParams();
  for (const [name, values] of Object.entries({ id: jobs, ...filters })) {
    for (const value of [values ?? []].flat()) query.append(name, value);
  }
  return query;
}

/** @param {unknown} error @returns {[number, string]} */
function because(error) {
  return [error instanceof Refusal ? error.code : 0, error instanceof Error ? error.message : String(error)];
}

/** @param {unknown} value @returns {value is {[member: string]: any}} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Follows jobs on one connection for all subscriptions. Every callback is called from a microtask or a timer. */
export class Correlator {
  /** @type {Options} */ #options;
  /** @type {URL} */ #base;
  /** @type {NonNullable<Options["clock"]>} */ #clock;
  #seams;
  /** @type {string[]} */ #ways;
  #way = 0; // the one in use, in #ways
  /** @type {Connection} */
  #connection = { state: "connecting", transport: null, source: null, lag_seconds: 0, retry_at: null, error: null };
  #replica = new Replica();
  #lastId = 0;
  /** @type {Attempt | null} */ #attempt = null;
  /** @type {Attempt | null} a better way, tried beside one that works */ #trial = null;
  #vain = 0; // attempts in a row that were not welcomed, although requests get through
  #failures = 0;
  #askedAgain = false; // for a token
  #closed = false;
  /** @type {unknown} */ #retry = null;
  /** @type {unknown} */ #better = null;
  /** @type {unknown} */ #hiding = null;
  /** @type {Map<(connection: Connection) => void, Connection | null>} with what each was told last */
  #onlookers = new Map();
  #flushing = false;
  #flushed = -Infinity;

  /** @param {Options} [options] */
  constructor(options = {}) {
    this.#options = options;
    this.#base = baseUrl(options.url);
    this.#clock = options.clock ?? {
      now: () => Date.now(),
      setTimeout: (callback, ms) => setTimeout(callback, ms),
      clearTimeout: (timer) => clearTimeout(/** @type {any} */ (timer)),
      random: () => Math.random(),
    };
    const seams = (this.#seams = {
      WebSocket: options.WebSocket ?? globalThis.WebSocket,
      EventSource: options.EventSource ?? globalThis.EventSource,
      fetch: options.fetch ?? globalThis.fetch?.bind(globalThis),
    });
    const there = { websocket: seams.WebSocket, sse: seams.EventSource && seams.fetch, poll: seams.fetch };
    this.#ways = (options.transports ?? ["websocket", "sse", "poll"]).filter((way) => there[way] !== undefined);
    if (this.#ways.length === 0) throw new TypeError("no transport: pass options.WebSocket, EventSource or fetch");
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#look);
    this.#look();
  }

  get connection() {
    return this.#connection;
  }

  /**
   * @param {string | string[] | Wanted} what
   * @param {(update: Update) => void} onChange
   * @param {{logs?: import("./client.js").Level, onLog?: (lines: LogLine[], dropped: number) => void}} [more]
   */
  subscribe(what, onChange, { logs, onLog } = {}) {
    if (this.#closed) throw new TypeError("this Correlator is closed");
    const given = typeof what === "string" ? { jobs: [what] } : Array.isArray(what) ? { jobs: what } : what;
    const wanted = { ...given, logs: onLog ? (logs ?? given.logs ?? "INFO") : undefined };
    if (wanted.jobs !== undefined) wanted.jobs = [...new Set(wanted.jobs)];
    const view = new View(++this.#lastId, wanted, onChange, onLog, this.#connection);
    this.#replica.views.set(view.id, view);
    this.#replica.expect(view);
    const idle = this.#attempt === null && this.#connection.state === "connecting";
    if (idle || (this.#attempt && this.#fitting(this.#attempt.way) !== this.#attempt.way)) this.#connect();
    else this.#listening()?.subscribe(view, false);
    this.#schedule();
    return {
      close: () => {
        if (!this.#replica.views.has(view.id)) return;
        this.#replica.remove(view);
        this.#listening()?.unsubscribe(view);
      },
      get update() {
        return view.update;
      },
    };
  }

  /** @param {(connection: Connection) => void} callback */
  onConnection(callback) {
    const onlooker = (/** @type {Connection} */ connection) => callback(connection);
    this.#onlookers.set(onlooker, null);
    this.#schedule();
    return () => void this.#onlookers.delete(onlooker);
  }

  close() {
    this.#closed = true;
    this.#stop();
    this.#clock.clearTimeout(this.#hiding);
    this.#replica.views.clear();
    this.#onlookers.clear();
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#look);
  }

  /** The connection, if it knows of the subscriptions: a websocket is told of all of them once it is welcome. */
  #listening() {
    const attempt = this.#attempt;
    return attempt?.way === "websocket" && attempt.welcomed === null ? null : attempt?.link;
  }

  // -- from one connection to the next

  async #connect() {
    this.#stop();
    const attempt = (this.#attempt = this.#begin(this.#ways[this.#way]));
    this.#say({ state: "connecting", transport: null, retry_at: null });
    await this.#open(attempt);
  }

  /** @param {string} way @returns {Attempt} */
  #begin(way) {
    const heard = this.#clock.now();
    const attempt = { way: this.#fitting(way), link: null, heard, welcomed: null, bye: null, watch: null, over: false };
    this.#watch(attempt);
    return attempt;
  }

  /** @param {Attempt} attempt */
  async #open(attempt) {
    try {
      const { token: given } = this.#options;
      const token = (attempt.token = typeof given === "function" ? await given() : given);
      // While it was waited for, the client may have been closed, paused, or hurried on.
      if (attempt.over) return;
      attempt.link = ways[attempt.way]({
        base: this.#base,
        clock: this.#clock,
        token,
        seams: this.#seams,
        position: () => this.#replica.position,
        ask: (path, init) => this.#ask(token, path, init),
        receive: (message, view) => this.#receive(attempt, message, view),
        away: () => attempt === this.#attempt && this.#say({ state: "connecting" }),
        end: (code, reason) => this.#ended(attempt, code, reason),
      });
      // A websocket subscribes when it is welcome, as only then it knows whether it resumes.
      if (attempt.way === "websocket") return;
      for (const view of this.#replica.views.values()) attempt.link.subscribe(view, false);
    } catch (error) {
      this.#ended(attempt, 0, because(error)[1]);
    }
  }

  /**
   * An attempt was not welcomed. If an ordinary request gets through at the same moment, something between may be
   * stopping this way, and after two such attempts it is the next one's turn. Else nobody is there, and when somebody
   * is again, the best way is the one to begin with.
   * @param {Attempt} attempt
   */
  async #judge(attempt) {
    const reached = await this.#reached(attempt.token);
    if (this.#closed || this.#attempt?.welcomed != null) return;
    this.#vain = reached ? this.#vain + 1 : 0;
    if (!reached) this.#way = 0;
    if (this.#vain < VAIN_ATTEMPTS) return;
    this.#vain = 0;
    this.#way = (this.#way + 1) % this.#ways.length;
  }

  /** @param {string} way */
  #fitting(way) {
    const many = this.#replica.views.size > MAX_STREAMS;
    return way === "sse" && many && this.#ways.includes("poll") ? "poll" : way;
  }

  /** @param {string | undefined} token */
  async #reached(token) {
    if (this.#seams.fetch === undefined) return false;
    try {
      return (await this.#ask(token, "api/v1/jobs?limit=1")).ok;
    } catch (error) {
      return REFUSED.includes(because(error)[0]);
    }
  }

  /** @param {Attempt} attempt @param {Message} message @param {View} [view]  the one whose stream brought it */
  #receive(attempt, message, view) {
    if (attempt.over) return;
    attempt.heard = this.#clock.now();
    if (message.type === "welcome") return this.#welcomed(attempt, message, view);
    if (message.type === "bye") {
      attempt.bye = message;
      // A websocket is closed by the daemon, with a reason. An event stream has no such thing.
      if (attempt.way !== "websocket") return this.#ended(attempt, message.code, "the daemon said goodbye");
    }
    if (attempt !== this.#attempt) return;
    if (message.type === "status") this.#say({ source: message.source, lag_seconds: message.lag_seconds ?? 0 });
    if (message.type === "error" && message.code !== "not_found") {
      this.#say({ error: `${message.code}: ${message.detail}` });
    }
    const missing = this.#replica.receive(message);
    if (missing !== null) attempt.link?.get(missing, message.sub);
    if (attempt.welcomed !== null) this.#say({ state: this.#liveness(attempt) });
    this.#schedule();
  }

  /** @param {Attempt} attempt @param {Message} message @param {View} [view] */
  #welcomed(attempt, message, view) {
    if (attempt === this.#trial) {
      this.#trial = null;
      this.#drop(this.#attempt);
      this.#attempt = attempt;
      this.#way = this.#ways.indexOf(attempt.way);
    }
    const first = attempt.welcomed === null;
    attempt.welcomed ??= this.#clock.now();
    this.#vain = 0;
    this.#askedAgain = false;
    const resumed = message.resumed === true;
    this.#replica.welcome(message.epoch, resumed, attempt.way === "websocket");
    if (view !== undefined) this.#replica.expect(view);
    if (attempt.way === "websocket") {
      for (const each of this.#replica.views.values()) {
        this.#replica.expect(each);
        attempt.link?.subscribe(each, resumed && each.resumable);
      }
    }
    if (first) {
      const transport = /** @type {Connection["transport"]} */ (attempt.way);
      this.#say({ state: "live", transport, source: null, lag_seconds: 0, error: null });
      this.#seekBetter();
    }
  }

  /** @param {Attempt} attempt @param {number} closeCode @param {string} reason */
  #ended(attempt, closeCode, reason) {
    if (attempt.over) return;
    this.#drop(attempt);
    if (attempt === this.#trial) {
      this.#trial = null;
      this.#seekBetter();
      return;
    }
    this.#attempt = null;
    const code = LOST.includes(closeCode) && attempt.bye !== null ? attempt.bye.code : closeCode;
    this.#say({ transport: null, error: reason });
    if (REFUSED.includes(code)) {
      if (typeof this.#options.token !== "function" || this.#askedAgain) {
        this.#say({ state: "refused" });
      } else {
        this.#askedAgain = true;
        this.#connect();
      }
      return;
    }
    const now = this.#clock.now();
    // A close code of the daemon's own is no sign that something between stops this way.
    const answered = attempt.welcomed !== null || SAID.includes(code) || code >= 4000;
    if (!answered && attempt.link !== null && this.#ways.length > 1) this.#judge(attempt);
    if (attempt.welcomed !== null && now - attempt.welcomed >= LIVED_AFTER) this.#failures = 0;
    const delay = this.#delay(code, attempt.bye?.retry_ms);
    this.#say({ state: "offline", retry_at: now + delay });
    this.#retry = this.#clock.setTimeout(() => this.#connect(), delay);
  }

  /**
   * Milliseconds; full jitter, so that a thousand clients of one daemon do not come back together.
   * @param {number} code
   * @param {unknown} within  what a bye said of it
   */
  #delay(code, within) {
    if (code === RESTART) {
      const given = Array.isArray(within) && within.length === 2 && within.every(Number.isFinite);
      const [least, most] = given ? within : RESTART_WITHIN;
      return least + this.#clock.random() * (most - least);
    }
    const most = OUR_FAULT.includes(code) ? BACKOFF_MOST : Math.min(BACKOFF_MOST, BACKOFF * 2 ** this.#failures++);
    return this.#clock.random() * most;
  }

  /** A connection that says nothing: first it is stale, then it is given up. @param {Attempt} attempt */
  #watch(attempt) {
    const now = this.#clock.now();
    if (this.#replica.views.size === 0) attempt.heard = now; // without a subscription streams have nothing to say
    const silent = now - attempt.heard;
    const [warn, most] = attempt.welcomed === null ? [Infinity, WELCOME_WITHIN] : [STALE_AFTER, DEAD_AFTER];
    if (silent >= most) {
      this.#ended(attempt, 0, `nothing was heard for ${Math.round(silent / 1000)} s`);
      return;
    }
    if (attempt === this.#attempt && silent > warn) this.#say({ state: "stale" });
    const due = (silent > warn ? most : Math.min(warn + 1, most)) - silent;
    attempt.watch = this.#clock.setTimeout(() => this.#watch(attempt), due);
  }

  /** @param {Attempt} attempt @returns {Connection["state"]} */
  #liveness(attempt) {
    const { source } = this.#connection;
    const silent = this.#clock.now() - attempt.heard > STALE_AFTER;
    return silent || (source !== null && source !== "live") ? "stale" : "live";
  }

  /** Beside a way that works only as a fallback, the best one is tried from time to time. */
  #seekBetter() {
    this.#clock.clearTimeout(this.#better);
    if (this.#way === 0) return;
    this.#better = this.#clock.setTimeout(() => {
      this.#trial = this.#begin(this.#ways[0]);
      this.#open(this.#trial);
    }, BETTER_WAY_EVERY);
  }

  /** @param {Attempt | null} attempt */
  #drop(attempt) {
    if (attempt === null) return;
    attempt.over = true;
    this.#clock.clearTimeout(attempt.watch);
    attempt.link?.close();
  }

  #stop() {
    this.#drop(this.#attempt);
    this.#drop(this.#trial);
    this.#attempt = this.#trial = null;
    this.#clock.clearTimeout(this.#retry);
    this.#clock.clearTimeout(this.#better);
  }

  /** The page is shown or hidden. Out of sight for a while, it needs no connection; what it had is resumed. */
  #look = () => {
    this.#clock.clearTimeout(this.#hiding);
    if (globalThis.document?.visibilityState !== "hidden") return this.#wake();
    if (this.#options.pauseWhenHidden === false) return;
    this.#hiding = this.#clock.setTimeout(() => {
      if (this.#connection.state === "refused") return;
      this.#stop();
      this.#say({ state: "paused", transport: null, retry_at: null });
    }, PAUSE_AFTER);
  };

  /** There is a reason to believe that it works now. */
  #wake = () => {
    const { state } = this.#connection;
    const paused = state === "paused" && globalThis.document?.visibilityState !== "hidden";
    if (state === "offline" || paused) this.#connect();
  };

  /**
   * A request of the REST API. 304 and 404 are answers; whatever else is not a success is a `Refusal`.
   * @param {string | undefined} token
   * @param {string} path
   * @param {RequestInit} [init]
   */
  async #ask(token, path, init = {}) {
    const headers = new Headers(init.headers);
    if (token !== undefined) headers.set("Authorization", `Bearer ${token}`);
    const given = new AbortController();
    const timer = this.#clock.setTimeout(() => given.abort(), ANSWER_WITHIN);
    try {
      const url = new URL(path, this.#base).href;
      const response = await this.#seams.fetch(url, { ...init, headers, signal: given.signal });
      const { status } = response;
      if (response.ok || status === 304 || status === 404) return response;
      const code = { 400: 4400, 401: 4401, 403: 4403, 429: TRY_LATER, 503: TRY_LATER }[status] ?? 0;
      throw new Refusal(code, `${path.split("?")[0]}: HTTP status ${status}`);
    } finally {
      this.#clock.clearTimeout(timer);
    }
  }

  // -- handing out

  /** @param {Partial<Connection>} change */
  #say(change) {
    const was = this.#connection;
    this.#connection = Object.freeze({ ...was, ...change });
    const names = /** @type {(keyof Connection)[]} */ (Object.keys(change));
    if (names.every((name) => was[name] === change[name])) this.#connection = was;
    else this.#schedule();
  }

  /** What comes together is told together: at once after a pause, then once a frame. */
  #schedule() {
    if (this.#flushing || this.#closed) return;
    this.#flushing = true;
    const wait = this.#flushed + FRAME - this.#clock.now();
    if (wait > 0) this.#clock.setTimeout(() => this.#flush(), wait);
    else queueMicrotask(() => this.#flush());
  }

  #flush() {
    this.#flushing = false;
    this.#flushed = this.#clock.now();
    const connection = this.#connection;
    for (const view of [...this.#replica.views.values()]) {
      if (!view.touched && view.update.connection === connection) continue;
      // One that was closed by another's callback is to hear no more.
      if (this.#replica.views.has(view.id)) this.#tell(view, connection);
    }
    for (const [onlooker, told] of [...this.#onlookers]) {
      if (told === connection || !this.#onlookers.has(onlooker)) continue;
      this.#onlookers.set(onlooker, connection);
      call(onlooker, connection);
    }
  }

  /** @param {View} view @param {Connection} connection */
  #tell(view, connection) {
    const { changed, unknown, synced, lines, dropped } = view;
    const jobs = changed.size > 0 ? this.#replica.jobs(view) : view.update.jobs;
    const job = changed.size > 0 ? newest(jobs.values()) : view.update.job;
    view.update = Object.freeze({ jobs, job, changed, unknown, synced, connection });
    view.changed = new Set();
    view.lines = [];
    view.dropped = 0;
    view.touched = false;
    call(view.onChange, view.update);
    if (view.onLog !== undefined && (lines.length > 0 || dropped > 0)) call(view.onLog, lines, dropped);
  }
}

/** @type {Correlator | undefined} */
let shared;

/** @type {Correlator["subscribe"]} */
export function subscribe(what, onChange, more) {
  shared ??= new Correlator();
  return shared.subscribe(what, onChange, more);
}

/** The one that started last; two of one moment are told apart as the daemon does. @param {Iterable<Job>} jobs */
function newest(jobs) {
  /** @type {Job | null} */
  let last = null;
  for (const job of jobs) {
    const [at, then] = [job.started_at ?? "", last?.started_at ?? ""];
    if (last === null || at > then || (at === then && job.job_id > last.job_id)) last = job;
  }
  return last;
}

/**
 * An error in one callback is the page's own, and nobody else's.
 * @param {(...given: any[]) => void} callback
 * @param {...any} given
 */
function call(callback, ...given) {
  try {
    callback(...given);
  } catch (error) {
    (globalThis.reportError ?? console.error)(error);
  }
}

const HERE = import.meta.url;

/** @param {string | URL | undefined} given @returns {URL} */
function baseUrl(given) {
  const page = globalThis.location?.href;
  // In a bundle this file's URL may be no address; then the page's own origin is the best guess.
  const [path, from] = given !== undefined ? [given, page] : HERE.startsWith("http") ? [".", HERE] : ["/", page];
  const base = new URL(path, from);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  base.search = base.hash = "";
  return base;
}
