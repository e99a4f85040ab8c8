/** Calls the callbacks of the page: at once after a pause, then at most once per FRAME ms. */

/** @import { Connection } from "../client.js" */
/** @import { Replica } from "./replica.js" */
/** @import { View } from "./replica.js" */

const FRAME = 16; // ms between two updates

/** The states of a connection, which client.d.ts describes. */
export const State = Object.freeze({
  CONNECTING: "connecting",
  LIVE: "live",
  STALE: "stale",
  OFFLINE: "offline",
  PAUSED: "paused",
  REFUSED: "refused",
});

/** @type {Connection} before the first attempt */
export const UNCONNECTED = Object.freeze({
  state: State.CONNECTING,
  transport: null,
  source: null,
  lag_seconds: 0,
  retry_at: null,
  error: null,
  ahead_ms: null,
});

export class Notifier {
  connection = UNCONNECTED;
  /** @type {Map<(connection: Connection) => void, Connection | null>} and the connection that each received last */
  listeners = new Map();
  #isScheduled = false;
  #flushedAt = -Infinity;
  #replica;
  #clock;

  /** @param {Replica} replica @param {import("./requests.js").Environment["clock"]} clock */
  constructor(replica, clock) {
    this.#replica = replica;
    this.#clock = clock;
  }

  /** @param {Partial<Connection>} change */
  setConnection(change) {
    const before = this.connection;
    const names = /** @type {(keyof Connection)[]} */ (Object.keys(change));
    if (names.every((name) => before[name] === change[name])) return;
    this.connection = Object.freeze({ ...before, ...change });
    this.schedule();
  }

  /** Calls the callbacks that something has changed for, soon. */
  schedule() {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    const wait = this.#flushedAt + FRAME - this.#clock.now();
    if (wait > 0) this.#clock.setTimeout(() => this.#flush(), wait);
    else queueMicrotask(() => this.#flush());
  }

  #flush() {
    this.#isScheduled = false;
    this.#flushedAt = this.#clock.now();
    const { connection } = this;
    const { views } = this.#replica;
    for (const view of [...views.values()]) {
      if (!view.touched && view.connection === connection) continue;
      // A callback may have closed another subscription, which must not be called any more.
      if (views.has(view.id)) this.#update(view, connection);
    }
    for (const [listener, received] of [...this.listeners]) {
      if (received === connection || !this.listeners.has(listener)) continue;
      this.listeners.set(listener, connection);
      call(listener, connection);
    }
  }

  /** @param {View} view @param {Connection} shared  of all views; one that the token does not open is refused */
  #update(view, shared) {
    const { changed, unknown, synced, lines, dropped, events, refusal } = view;
    const connection =
      refusal === null ? shared : Object.freeze({ ...shared, state: State.REFUSED, error: refusal, retry_at: null });
    view.connection = shared;
    const [jobs, job] = changed.size > 0 ? this.#replica.changes(view) : [view.update.jobs, view.update.job];
    view.update = Object.freeze({ jobs, job, changed, unknown, synced, connection });
    view.changed = new Set();
    view.lines = [];
    view.dropped = 0;
    view.events = [];
    view.touched = false;
    call(view.onChange, view.update);
    if (view.onLog !== undefined && (lines.length > 0 || dropped > 0)) call(view.onLog, lines, dropped);
    if (view.onEvent !== undefined) for (const event of events) call(view.onEvent, event);
  }
}

/**
 * Calls a callback of the page. Its error is reported and does not affect other callbacks.
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
