/**
 * The part of a job's log that is in memory: a contiguous range of event IDs, ordered by time. Pure.
 *
 * Invariants: each line is present once. All known lines from `lowest` up to the highest present one are present, so
 * lines are evicted by ID, at one end, although they are shown by time. The number of lines and characters is bounded.
 */

export const MOST_LINES = 3000;
export const MOST_CHARACTERS = 16 << 20;

export class LogWindow {
  #lines = new Map();
  #ordered = [];
  #characters = 0;
  #most;

  /** The event ID from which on all lines are present. */
  lowest = 1;

  constructor(most = MOST_LINES) {
    this.#most = most;
  }

  /** The lines in the order of time; a new array after each change. */
  get lines() {
    return this.#ordered;
  }

  /** The highest event ID that is present; 0 if there is none. */
  get highest() {
    return this.#lines.size === 0 ? 0 : Math.max(...this.#lines.keys());
  }

  get isFull() {
    return this.#lines.size >= this.#most || this.#characters >= MOST_CHARACTERS;
  }

  has(id) {
    return this.#lines.has(id);
  }

  /** Adds the lines from `lowest` on, and returns how many were new. */
  add(lines) {
    const fresh = lines.filter((line) => line.event_id >= this.lowest && !this.#lines.has(line.event_id));
    for (const line of fresh) {
      this.#lines.set(line.event_id, line);
      this.#characters += length(line);
    }
    if (fresh.length > 0) {
      this.#order();
    }
    return fresh.length;
  }

  /** Evicts the lowest IDs until the window is within its bounds. True if any was. */
  cutStart() {
    const gone = this.#excess((a, b) => a - b);
    if (gone.length > 0) {
      this.#evict(gone);
      this.lowest = Math.min(...this.#lines.keys());
    }
    return gone.length > 0;
  }

  /** Evicts the highest IDs until the window is within its bounds. True if any was. */
  cutEnd() {
    const gone = this.#excess((a, b) => b - a);
    this.#evict(gone);
    return gone.length > 0;
  }

  #excess(order) {
    if (this.#lines.size <= this.#most && this.#characters <= MOST_CHARACTERS) {
      return [];
    }
    const ids = [...this.#lines.keys()].sort(order);
    let characters = this.#characters;
    let count = 0;
    while (count < ids.length - 1 && (ids.length - count > this.#most || characters > MOST_CHARACTERS)) {
      characters -= length(this.#lines.get(ids[count]));
      count += 1;
    }
    return ids.slice(0, count);
  }

  #evict(ids) {
    for (const id of ids) {
      this.#characters -= length(this.#lines.get(id));
      this.#lines.delete(id);
    }
    if (ids.length > 0) {
      this.#order();
    }
  }

  #order() {
    this.#ordered = [...this.#lines.values()].sort(compared);
  }
}

const lengths = new WeakMap();

/** The characters of a line, about. They are counted once. */
function length(line) {
  if (!lengths.has(line)) {
    lengths.set(line, line.message.length + (line.attrs === null ? 0 : JSON.stringify(line.attrs).length));
  }
  return lengths.get(line);
}

/** All times have the same length and zone, so they are compared as text. */
function compared(a, b) {
  if (a.at === b.at) {
    return a.event_id - b.event_id;
  }
  return a.at < b.at ? -1 : 1;
}
