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

import { LogWindow } from "./log_window.js";

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
    this.#backward = backward;
    this.#forward = forward;
    this.window = new LogWindow(this.#most);
    this.window.lowest = backward ?? 1;
    this.atEnd = false;
    this.loaded = false;
    this.unseen = 0;
    this.trouble = null;
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
