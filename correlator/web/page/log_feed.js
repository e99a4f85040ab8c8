/**
 * The lines of a job's log around the place that is shown: pages of history on demand, and live lines at the end.
 *
 * Problem: a log may have a million lines, and the place that is shown may be anywhere in it.
 *
 * Model: a `LogWindow` holds some pages. `earlier` reads the page before it and evicts lines at its end; `later` reads
 * the page after it and evicts lines at its start. While the window reaches the end of the log (`atEnd`), live lines are
 * added to it. Live lines that arrive during a request for the last page are kept, so that none is lost between both.
 *
 * Invariants: the window has no hole, and no line twice. One request at a time. A newer `open…` discards the others.
 */

const LAST = Number.MAX_SAFE_INTEGER;
const ENOUGH = 200;
/** Lines to read before a request is over, as a page of a filtered log may be short or empty. */
const RECENT = 1000;
/** Live lines that are kept for a request for the last page. */
const OVERLAP = 2000;
/** Event IDs below the newest from which on the end is read: rows there may be committed late. */
const CATCH_UP = 5;
/** Pages of lines missed in an outage; after more than that, the log is opened at its end. */

export class LogFeed {
  #fetchPage;
  #onChange;
  #generation = 0;
  #busy = false;
  #again = false;
  #backward = null;
  #forward = null;
  #reopen = () => this.openEnd();
  #recent = [];
  #arrived = 0;
  #most;

  /** True while the view shows the end: then the oldest lines are evicted, else the newest. */
  following = true;
  /** Live lines that are not in the window. */
  unseen = 0;
  /** Live lines that the daemon dropped because this client was slow; they are read again from the history. */
  dropped = 0;
  /** "", "earlier" or "later": what is being read. */
  loading = "";
  loaded = false;
  trouble = null;
  /** Why lines may be missing from the pages that have been read; null if none are. */
  incomplete = null;

  /**
   * `fetchPage({before | from | after})` returns a page of `/events`; `onChange` is called after each change; `most`
   * lines are in memory.
   */
  constructor(fetchPage, onChange, most) {
    this.#fetchPage = fetchPage;
    this.#onChange = onChange;
    this.#most = most;
    this.window = new LogWindow(most);
    this.atEnd = false;
  }

  get atStart() {
    return this.#backward === null;
  }

  /** Shows the end of the log. */
  openEnd() {
    this.#reset(LAST, null);
    this.#reopen = () => this.openEnd();
    this.following = true;
    return this.#run(async (isCurrent) => {
      await this.#readEarlier(isCurrent);
      const { lowest, highest } = this.window;
      this.#forward = { from: Math.max(lowest, highest - OVERLAP) };
      await this.#readLater(isCurrent, () => true);
    });
  }

  /** Shows the begin of the log. */
  openStart() {
    this.#reset(null, { from: 1 });
    this.#reopen = () => this.openStart();
    this.following = false;
    return this.#run((isCurrent) => this.#readLater(isCurrent, (added) => added < ENOUGH));
  }

  /** Shows the lines around an event ID. Resolves with false if another place was opened meanwhile. */
  openAt(id) {
    this.#reset(id + 1, { from: id + 1 });
    this.#reopen = () => this.openAt(id);
    this.following = false;
    return this.#run(async (isCurrent) => {
      await this.#readEarlier(isCurrent);
      await this.#readLater(isCurrent, (added) => added < ENOUGH);
    });
  }

  /** Reads the page before the window, if there is one and no request is in progress. */
  earlier() {
    if (this.#busy || !this.loaded || this.atStart || this.trouble !== null) {
      return Promise.resolve();
    }
    return this.#run((isCurrent) => this.#readEarlier(isCurrent));
  }

  /** Reads the page after the window, if there is one and no request is in progress. */
  later() {
    if (this.#busy || !this.loaded || this.atEnd || this.trouble !== null) {
      return Promise.resolve();
    }
    return this.#run((isCurrent) => this.#readLater(isCurrent, (added) => added < ENOUGH));
  }

  /** Reads the lines that the stream has not brought: after an outage, or when the daemon dropped some. */
  async catchUp() {
    if (this.#busy) {
      this.#again = true;
      return;
    }
    const hasFailed = this.trouble !== null;
    this.trouble = null;
    if (hasFailed && this.window.lines.length === 0) {
      await this.#reopen();
    } else if (this.atEnd) {
      let pages = 0;
      const goesOn = () => (pages += 1) < CATCH_UP && (this.following || !this.window.isFull);
      await this.#run((isCurrent) => this.#readLater(isCurrent, goesOn, this.following));
      if (!this.atEnd && this.following && this.trouble === null) {
        await this.openEnd();
      }
    } else if (hasFailed && this.following) {
      await this.openEnd();
    } else {
      this.#changed();
    }
  }

  /** Adds live lines. */
  live(lines, dropped = 0) {
    this.dropped += dropped;
    this.#recent = this.#recent.concat(lines).slice(-RECENT);
    this.#arrived += lines.length;
    if (this.atEnd) {
      const count = this.window.add(lines);
      this.unseen += this.following ? 0 : count;
      this.#bound(this.following);
    } else {
      this.unseen += lines.length;
    }
    this.#changed();
    return dropped > 0 ? this.catchUp() : Promise.resolve();
  }

  close() {
    this.#generation += 1;
  }

  #reset(backward, forward) {
    this.#generation += 1;
    this.#busy = false;
    this.loading = ""; // so that the view is drawn anew, also if the same is being read again
    this.#backward = backward;
    this.#forward = forward;
    this.window = new LogWindow(this.#most);
    this.window.lowest = backward ?? 1;
    this.atEnd = false;
    this.loaded = false;
    this.unseen = 0;
    this.trouble = null;
    this.incomplete = null;
  }

  /** Does one piece of work. Resolves with false if another place was opened meanwhile. */
  async #run(work) {
    const generation = this.#generation;
    const isCurrent = () => generation === this.#generation;
    this.#busy = true;
    try {
      await work(isCurrent);
    } catch (error) {
      if (isCurrent()) {
        this.trouble = error instanceof Error ? error.message : String(error);
      }
    }
    if (!isCurrent()) {
      return false;
    }
    this.#busy = false;
    this.loading = "";
    this.loaded = true;
    this.#changed();
    if (this.#again) {
      this.#again = false;
      await this.catchUp();
    }
    return isCurrent();
  }

  async #readEarlier(isCurrent) {
    let added = 0;
    while (this.#backward !== null && added < ENOUGH) {
      this.#loads("earlier");
      const before = this.#backward;
      const page = await this.#fetchPage({ before });
      if (!isCurrent() || this.#backward !== before) {
        return; // live lines have evicted those that this page precedes
      }
      this.#backward = page.next_before ?? null;
      this.incomplete = page.reason ?? this.incomplete;
      this.window.lowest = this.#backward ?? 1;
      added += this.window.add(page.events);
      this.#cutEnd();
      this.#changed();
    }
  }

  /** Reads pages while `goesOn(lines so far)` and there are further ones. `keepsEnd`: the oldest are evicted. */
  async #readLater(isCurrent, goesOn, keepsEnd = true) {
    let added = 0;
    do {
      this.#loads("later");
      this.#arrived = 0;
      const place = this.#forward;
      const page = await this.#fetchPage(place);
      if (!isCurrent() || this.#forward !== place) {
        return; // live lines have evicted those that this page follows
      }
      if (typeof page.next_after === "string") {
        this.#forward = { after: page.next_after };
      }
      this.incomplete = page.reason ?? this.incomplete;
      added += this.window.add(page.events);
      this.atEnd = !page.more && this.#arrived < RECENT;
      if (this.atEnd) {
        this.window.add(this.#recent);
        this.unseen = 0;
      }
      this.#bound(keepsEnd);
      this.#changed();
    } while (!this.atEnd && goesOn(added));
  }

  /** Evicts lines of a window that grew at its end: the oldest with `keepsEnd`, else the newest. */
  #bound(keepsEnd) {
    if (keepsEnd && this.window.cutStart()) {
      this.#backward = this.window.lowest;
    } else if (!keepsEnd) {
      this.#cutEnd();
    }
  }

  #cutEnd() {
    if (this.window.cutEnd()) {
      this.atEnd = false;
      this.#forward = { from: this.window.highest + 1 };
    }
  }

  #loads(what) {
    if (this.loading !== what) {
      this.loading = what;
      this.#changed();
    }
  }

  #changed() {
    this.#onChange();
  }
}

// -- The part of a job's log that is in memory: a contiguous range of event IDs, ordered by time. Pure.
//
// Invariants: each line is present once. All known lines from `lowest` up to the highest present one are present, so
// lines are evicted by ID, at one end, although they are shown by time. The number of lines and characters is bounded.

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
