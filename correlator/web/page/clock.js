/**
 * The daemon's clock, as far as this browser can know it: `started_at` is by that clock, and a tablet's may be wrong.
 *
 * A document that changes now carries the daemon's "now" as `updated_at`. It is late by the way it took, never early,
 * so the smallest of the last differences is the best guess.
 */

import { moment } from "./times.js";

const REMEMBERED = 16;
const SETTLING = 3000;
/** Milliseconds after a (re)connection during which documents may be old ones, sent again. */
const SILENCE = 25_000;
/** Milliseconds after which client.js takes silence for a fault: what was true before is all that is known. */

export class Clock {
  #differences = [];
  #settled = Number.POSITIVE_INFINITY;
  #stopped = null;

  /** Milliseconds by which this browser is ahead of the daemon. */
  offset = 0;

  /** While not live, time stands still at `asOf`: nobody knows what has gone on since. */
  connected(connection, here = Date.now()) {
    if (connection.state === "live") {
      if (this.#stopped !== null || this.#settled === Number.POSITIVE_INFINITY) {
        this.#settled = here + SETTLING;
      }
      this.#stopped = null;
    } else if (this.#stopped === null && this.#settled !== Number.POSITIVE_INFINITY) {
      this.#stopped = here - doubtful(connection);
    }
  }

  /** The documents that an update changed. */
  heard(jobs, changed, here = Date.now()) {
    if (this.#stopped !== null && changed.size > 0) {
      this.#stopped = here;
    }
    for (const id of changed) {
      const at = moment(jobs.get(id)?.updated_at);
      if (at === null) {
        continue;
      }
      // A document from the future proves the browser slow, old or not.
      if (here >= this.#settled || here - at < this.offset) {
        this.#differences.push(here - at);
      }
    }
    if (this.#differences.length > 0) {
      this.#differences = this.#differences.slice(-REMEMBERED);
      this.offset = Math.min(...this.#differences);
    }
  }

  /** This browser's moment of the last certain knowledge; null while live. */
  get asOf() {
    return this.#stopped;
  }

  /** Now, by the daemon's clock. */
  now(here = Date.now()) {
    return (this.#stopped ?? here) - this.offset;
  }
}

/** Milliseconds before now that are no longer vouched for. */
function doubtful({ state, source, lag_seconds: lag }) {
  if (source === "stale" || source === "down") {
    return Number.isFinite(lag) ? lag * 1000 : 0;
  }
  return state === "stale" ? SILENCE : 0;
}
