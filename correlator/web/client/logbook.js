/**
 * The log lines of one job, merged from pages of history and the live stream. Pure.
 *
 * Invariants: each line is present once, by its event ID. Lines are ordered by time, not by ID. The number of lines and
 * their size are bounded: the oldest are evicted and counted. A line that is not newer than an evicted one is not added
 * again, so only the IDs of the present lines are stored.
 */

/** @typedef {{event_id: number, at: string}} Line  with further members */

export const KEPT = 2000;
/** Lines on the page while it follows the log. After scrolling up it keeps up to five times as many. */

const MOST_CHARACTERS = 8e6;
/** Of all lines together, as JSON. The newest line is kept in any case. */

export class Logbook {
  /** @type {Map<number, number>} the size in characters of each present line, by its ID */
  #sizes = new Map();
  #characters = 0;
  /** @type {any[]} */ #lines = [];
  /** @type {Line | null} the newest evicted line */
  #gone = null;

  /** Number of evicted lines. */
  forgotten = 0;
  /** Number of lines that the daemon dropped for a slow client; the history has them. */
  dropped = 0;

  #most;
  #mostCharacters;

  constructor({ lines = KEPT, characters = MOST_CHARACTERS } = {}) {
    this.#most = lines;
    this.#mostCharacters = characters;
  }

  get lines() {
    return this.#lines;
  }

  /** Number of stored IDs. */
  get size() {
    return this.#sizes.size;
  }

  /** Adds lines and returns how many were new. `lines` is a new array if any was. @param {readonly any[]} lines */
  add(lines, { keepAll = false } = {}) {
    const fresh = lines.filter((line) => {
      const known = this.#sizes.has(line.event_id) || (this.#gone !== null && compared(line, this.#gone) <= 0);
      if (!known) this.#count(line);
      return !known;
    });
    if (fresh.length === 0) {
      return 0;
    }
    const merged = this.#lines.concat(fresh);
    if (!inOrder(merged, Math.max(0, this.#lines.length - 1))) {
      merged.sort(compared);
    }
    const most = keepAll ? 5 * this.#most : this.#most;
    let gone = 0;
    while (merged.length - gone > most || (this.#characters > this.#mostCharacters && merged.length - gone > 1)) {
      const { event_id: id } = (this.#gone = merged[gone]);
      this.#characters -= this.#sizes.get(id) ?? 0;
      this.#sizes.delete(id);
      gone += 1;
    }
    this.forgotten += gone;
    this.#lines = gone === 0 ? merged : merged.slice(gone);
    return fresh.length;
  }

  /** @param {Line} line */
  #count(line) {
    const characters = JSON.stringify(line).length;
    this.#sizes.set(line.event_id, characters);
    this.#characters += characters;
  }
}

/** @param {Line} a @param {Line} b */
function compared(a, b) {
  return (Date.parse(a.at) || 0) - (Date.parse(b.at) || 0) || microseconds(a, b) || a.event_id - b.event_id;
}

/** Compares times within one millisecond as text; all have the same length. @param {Line} a @param {Line} b */
function microseconds(a, b) {
  return a.at < b.at ? -1 : Number(a.at > b.at);
}

/** @param {Line[]} lines @param {number} from */
function inOrder(lines, from) {
  for (let at = from + 1; at < lines.length; at += 1) {
    if (compared(lines[at - 1], lines[at]) > 0) {
      return false;
    }
  }
  return true;
}
