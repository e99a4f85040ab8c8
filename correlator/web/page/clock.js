/**
 * An estimate of the daemon's clock. Documents have the daemon's times, and the clock of a tablet may be wrong.
 *
 * The difference comes from messages with the daemon's current time (`ahead_ms` of client.js). A document cannot be
 * used for it: its `updated_at` is the time of its last change, which may be hours ago.
 */

const SILENCE = 25_000;
/** Milliseconds without a message after which client.js reports a connection as stale. */

export class Clock {
  #ahead = 0;
  #wasLive = false;
  #stopped = null;

  /** Updates the state of the connection. While it is not live, the clock stops at `asOf`. */
  connected(connection, here = Date.now()) {
    this.#ahead = connection.ahead_ms ?? this.#ahead;
    if (connection.state === "live") {
      this.#wasLive = true;
      this.#stopped = null;
    } else if (this.#stopped === null && this.#wasLive) {
      this.#stopped = here - doubtful(connection);
    }
  }

  /** Call it when documents have changed: while the connection is not live, `asOf` becomes the current time. */
  documentsChanged(changed, here = Date.now()) {
    if (this.#stopped !== null && changed.size > 0) {
      this.#stopped = here;
    }
  }

  /** The time, by this browser's clock, up to which the documents are certain; null while live. */
  get asOf() {
    return this.#stopped;
  }

  /** The current time by the daemon's clock, in milliseconds since 1970. */
  now(here = Date.now()) {
    return (this.#stopped ?? here) + this.#ahead;
  }
}

/** Milliseconds before now for which the documents may be out of date. */
function doubtful({ state, source, lag_seconds: lag }) {
  if (source === "stale" || source === "down") {
    return Number.isFinite(lag) ? lag * 1000 : 0;
  }
  return state === "stale" ? SILENCE : 0;
}
