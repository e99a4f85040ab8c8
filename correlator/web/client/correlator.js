/** The API of the client: subscriptions, which share one connection. */

import { Connector } from "./connector.js";
import { environmentOf } from "./environment.js";
import { Notifier } from "./notifier.js";
import { Replica } from "./replica.js";
import { jobPath, request } from "./requests.js";
import { View } from "./view.js";

/** @import { Connection } from "../client.js" */

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
