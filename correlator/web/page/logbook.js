/**
 * The log lines of one job, from two sides: pages of history and the live stream. Pure.
 *
 * Always: each line once, by its event id; in the order in which things happened, which is that of the times, not
 * of the ids. Bounded: the oldest go first, and it is told how many.
 */

import { moment } from "./times.js";

export const KEPT = 2000;
/** Lines on the page while it follows; a reader who has scrolled up keeps what is read, up to five times as many. */

export class Logbook {
  #ids = new Set();
  #lines = [];

  /** Lines that were here and had to go. */
  forgotten = 0;
  /** Lines that the daemon dropped on the way to a slow reader: they are in the history. */
  dropped = 0;

  get lines() {
    return this.#lines;
  }

  /** How many of these were new. `lines` is another array afterwards if any was. */
  add(lines, { keepAll = false } = {}) {
    const fresh = lines.filter((line) => !this.#ids.has(line.event_id) && this.#ids.add(line.event_id));
    if (fresh.length === 0) {
      return 0;
    }
    const merged = this.#lines.concat(fresh);
    if (!inOrder(merged, Math.max(0, this.#lines.length - 1))) {
      merged.sort(compared);
    }
    const most = keepAll ? 5 * KEPT : KEPT;
    const gone = Math.max(0, merged.length - most);
    this.forgotten += gone;
    this.#lines = gone === 0 ? merged : merged.slice(gone);
    return fresh.length;
  }
}

function compared(a, b) {
  return (moment(a.at) ?? 0) - (moment(b.at) ?? 0) || microseconds(a, b) || a.event_id - b.event_id;
}

/** Within one millisecond the texts decide, which are equally long. */
function microseconds(a, b) {
  return a.at < b.at ? -1 : Number(a.at > b.at);
}

function inOrder(lines, from) {
  for (let at = from + 1; at < lines.length; at += 1) {
    if (compared(lines[at - 1], lines[at]) > 0) {
      return false;
    }
  }
  return true;
}
