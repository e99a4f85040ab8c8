/** The API of the client: subscriptions, which share one connection, and connections that the parts of a page share. */

import { Connector } from "./connector.js";
import { Notifier, State } from "./notifier.js";
import { Replica, View } from "./replica.js";
import { baseUrl, environmentOf, jobPath, request } from "./requests.js";

/** @import { Connection, More, SharedOptions, Subscription, Update, Wanted } from "../client.js" */

/** Every callback is called from a microtask or a timer. */
export class Correlator {
  #replica = new Replica();
  #environment;
  #token;
  #notifier;
  #connector;
  #lastId = 0;
  #closed = false;

  /** @param {import("../client.js").Options} [options] */
  constructor(options = {}) {
    this.#environment = environmentOf(options);
    this.#token = options.token;
    this.#notifier = new Notifier(this.#replica, this.#environment.clock);
    this.#connector = new Connector(options, this.#environment, this.#replica, this.#notifier);
  }

  get connection() {
    return this.#notifier.connection;
  }

  /** @type {import("../client.js").Correlator["subscribe"]} */
  subscribe(what, onChange, { logs, onLog, onEvent } = {}) {
    if (this.#closed) throw new TypeError("this Correlator is closed");
    const given = typeof what === "string" ? { jobs: [what] } : Array.isArray(what) ? { jobs: what } : what;
    const wanted = { ...given, logs: onLog ? (logs ?? given.logs ?? "INFO") : undefined };
    if (wanted.jobs !== undefined) wanted.jobs = [...new Set(wanted.jobs)];
    const view = new View(++this.#lastId, wanted, onChange, onLog, onEvent, this.connection);
    this.#replica.views.set(view.id, view);
    this.#connector.subscribe(view);
    this.#notifier.schedule();
    return {
      close: () => {
        if (!this.#replica.views.has(view.id)) return;
        this.#replica.remove(view);
        this.#connector.unsubscribe(view);
      },
      get update() {
        return view.update;
      },
    };
  }

  /** @param {(connection: Connection) => void} callback */
  onConnection(callback) {
    if (this.#closed) return () => {};
    const listener = (/** @type {Connection} */ connection) => callback(connection);
    this.#notifier.listeners.set(listener, null);
    this.#notifier.schedule();
    return () => void this.#notifier.listeners.delete(listener);
  }

  /** @type {import("../client.js").Correlator["history"]} */
  async history(jobId, { after, level, limit = 1000 } = {}) {
    const query = new URLSearchParams({ limit: String(limit) });
    if (level !== undefined) query.set("level", level);
    if (after !== undefined) query.set("after", after);
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    const response = await request(this.#environment, token, jobPath(jobId, "/events", query));
    if (response.status === 404) throw new Error(`no job has the ID ${jobId}`);
    return response.json();
  }

  close() {
    this.#closed = true;
    this.#connector.close();
    this.#replica.views.clear();
    this.#notifier.listeners.clear();
  }
}

// -- The connections that all parts of a page share: one for each server and token.
//
// A connection is closed LINGER ms after its last use has ended, so that a page which replaces its elements keeps it.

const LINGER = 5000; // ms

/** @typedef {{base: string, token: SharedOptions["token"], correlator: Correlator, uses: number, timer: any}} Shared */

/** @type {Shared[]} one for each server and token in use, and so a few */
const connections = [];

/**
 * The shared `Correlator` of a server, until `release()`. One that was refused is not given again.
 * @param {SharedOptions} [options]
 */
export function acquire({ url, token } = {}) {
  const base = baseUrl(url).href;
  let shared = connections.find(
    (each) => each.base === base && each.token === token && each.correlator.connection.state !== State.REFUSED,
  );
  if (shared === undefined) {
    shared = { base, token, correlator: new Correlator({ url: base, token }), uses: 0, timer: undefined };
    connections.push(shared);
  }
  const { correlator } = shared;
  clearTimeout(shared.timer);
  shared.uses += 1;
  let released = false;
  const release = () => {
    if (released) return;
    released = true;
    shared.uses -= 1;
    if (shared.uses === 0) shared.timer = setTimeout(() => close(shared), LINGER);
  };
  return { correlator, release };
}

/** @param {Shared} shared */
function close(shared) {
  connections.splice(connections.indexOf(shared), 1);
  shared.correlator.close();
}

/**
 * `Correlator.subscribe` on the shared connection of a server.
 * @param {string | string[] | Wanted} what
 * @param {(update: Update) => void} onChange
 * @param {More & SharedOptions} [more]
 * @returns {Subscription}
 */
export function subscribe(what, onChange, { url, token, ...more } = {}) {
  const { correlator, release } = acquire({ url, token });
  const subscription = correlator.subscribe(what, onChange, more);
  return {
    close() {
      subscription.close();
      release();
    },
    get update() {
      return subscription.update;
    },
  };
}
