/**
 * The log of one job, by any of its IDs: its history and its live lines, each line once, the newest `limit` of them.
 *
 * A line arrives by the stream, by a page of the history, or by both; `Logbook` merges them by event ID. `LogHistory` is
 * read when the job appears, and again when lines may be missing: after an interruption, after lines were dropped, and
 * while the client polls. If it cannot be read, that is retried.
 */

import { acquire } from "../client.js";

/** @import { Correlator, Level, LogLine, LogPage, SharedOptions, Subscription, Update } from "../client.js" */
/** @import { JobLogOptions, JobLogState } from "../react.js" */

const RETRY_AFTER = 5000; // ms

/** @type {JobLogState} */
export const NO_LOG = Object.freeze({ lines: [], older: 0, loaded: false, error: null });

export class JobLog {
  /** Frozen; each change creates a new one. */
  state = NO_LOG;
  /** @type {string | null} */ #jobId = null;
  #wasLive = false;
  /** @type {Logbook} */ #book;
  /** @type {LogHistory | null} */ #history = null;
  /** @type {any} */ #retry;
  /** @type {ReturnType<typeof acquire>} */ #shared;
  /** @type {Subscription} */ #subscription;
  #level;
  #limit;
  #onChange;

  /** @param {string} id @param {JobLogOptions & SharedOptions} options @param {() => void} onChange  after each change */
  constructor(id, { level = "INFO", limit = 1000, url, token }, onChange) {
    this.#level = level;
    this.#limit = limit;
    this.#onChange = onChange;
    this.#book = new Logbook(limit);
    this.#shared = acquire({ url, token });
    this.#subscription = this.#shared.correlator.subscribe(id, (update) => this.#update(update), {
      logs: level,
      onLog: (lines, dropped) => {
        this.#add(lines.filter((line) => line.job_id === this.#jobId));
        if (dropped > 0) this.#read();
      },
    });
  }

  close() {
    this.#stop();
    this.#subscription.close();
    this.#shared.release();
  }

  /** @param {Update} update  it precedes the log lines of its jobs */
  #update({ job, changed, connection }) {
    const isLive = connection.state === "live";
    const isMissed = (isLive && !this.#wasLive) || (connection.transport === "poll" && changed.size > 0);
    this.#wasLive = isLive;
    if (job !== null && job.job_id !== this.#jobId) this.#begin(job.job_id);
    else if (isMissed) this.#read();
  }

  /** @param {string} jobId */
  #begin(jobId) {
    this.#stop();
    this.#jobId = jobId;
    this.#book = new Logbook(this.#limit);
    this.#history = new LogHistory(this.#shared.correlator, jobId, this.#level, (lines) => {
      this.#add(lines.map((line) => ({ ...line, job_id: jobId })));
    });
    this.#set(NO_LOG);
    this.#read();
  }

  #stop() {
    clearTimeout(this.#retry);
    this.#history?.close();
    this.#history = null;
  }

  async #read() {
    const history = this.#history;
    if (history === null) return;
    clearTimeout(this.#retry);
    try {
      const isWhole = await history.read();
      const error = isWhole ? history.reason : "the log is too long to be read to its end";
      if (history === this.#history) this.#set({ loaded: true, error });
    } catch (error) {
      if (history !== this.#history) return;
      this.#set({ error: error instanceof Error ? error.message : String(error) });
      this.#retry = setTimeout(() => this.#read(), RETRY_AFTER);
    }
  }

  /** @param {LogLine[]} lines */
  #add(lines) {
    if (this.#book.add(lines) > 0) this.#set({ lines: this.#book.lines, older: this.#book.forgotten });
  }

  /** @param {Partial<JobLogState>} change */
  #set(change) {
    this.state = Object.freeze({ ...this.state, ...change });
    this.#onChange();
  }
}

// -- The log lines of one job from the daemon's database, page by page. A read continues where the last one ended.

const MOST_PAGES = 200; // in one read, so that a job of a million lines does not block the page

class LogHistory {
  /** @type {string | null} why lines of the pages so far may be missing */ reason = null;
  /** @type {string | undefined} */ #after;
  #again = false;
  #closed = false;
  /** @type {Promise<boolean> | null} */ #reading = null;
  #correlator;
  #jobId;
  #level;
  #onLines;

  /**
   * @param {Correlator} correlator
   * @param {string} jobId
   * @param {Level} level
   * @param {(lines: LogPage["events"]) => void} onLines
   */
  constructor(correlator, jobId, level, onLines) {
    this.#correlator = correlator;
    this.#jobId = jobId;
    this.#level = level;
    this.#onLines = onLines;
  }

  /**
   * Reads all pages that follow. Called during a read, it makes that one continue with one more page. Resolves with false
   * if more pages follow than one read has; rejects with the error of a request.
   * @returns {Promise<boolean>}
   */
  read() {
    if (this.#closed) return Promise.resolve(true);
    this.#again = true;
    this.#reading ??= this.#pages();
    return this.#reading;
  }

  /** After this, `onLines` is not called any more. */
  close() {
    this.#closed = true;
  }

  async #pages() {
    try {
      for (let pages = 0; this.#again && !this.#closed && pages < MOST_PAGES; pages += 1) {
        this.#again = false;
        this.#again = (await this.#page()) || this.#again;
      }
      return !this.#again;
    } finally {
      this.#again = false;
      this.#reading = null;
    }
  }

  /** Reads one page; true if there is another one now. */
  async #page() {
    const page = await this.#correlator.history(this.#jobId, { level: this.#level, after: this.#after });
    if (this.#closed) return false;
    this.#after = page.next_after ?? this.#after;
    this.reason = page.reason ?? this.reason;
    this.#onLines(page.events);
    return page.more;
  }
}

// -- The log lines of one job, merged from pages of history and the live stream. Pure.
//
// Invariants: each line is present once, by its event ID. Lines are ordered by time, not by ID. The number of lines and
// their size are bounded: the oldest are evicted and counted. A line that is not newer than an evicted one is not added
// again, so only the IDs of the present lines are stored.

/** @typedef {{event_id: number, at: string}} Line  with further members */

const MOST_CHARACTERS = 8e6; // of all lines together, as JSON; the newest line is kept in any case

export class Logbook {
  /** @type {Map<number, number>} the size in characters of each present line, by its ID */
  #sizes = new Map();
  #characters = 0;
  /** @type {any[]} */ #lines = [];
  /** @type {Line | null} the newest evicted line */
  #gone = null;

  /** Number of evicted lines. */
  forgotten = 0;
  #most;

  /** @param {number} most  lines */
  constructor(most) {
    this.#most = most;
  }

  get lines() {
    return this.#lines;
  }

  /** Number of stored IDs. */
  get size() {
    return this.#sizes.size;
  }

  /** Adds lines and returns how many were new. `lines` is a new array if any was. @param {readonly any[]} lines */
  add(lines) {
    const fresh = lines.filter((line) => {
      const known = this.#sizes.has(line.event_id) || (this.#gone !== null && compared(line, this.#gone) <= 0);
      if (!known) this.#count(line);
      return !known;
    });
    if (fresh.length === 0) return 0;
    const merged = this.#lines.concat(fresh);
    if (!inOrder(merged, Math.max(0, this.#lines.length - 1))) merged.sort(compared);
    let gone = 0;
    while (merged.length - gone > this.#most || (this.#characters > MOST_CHARACTERS && merged.length - gone > 1)) {
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
    if (compared(lines[at - 1], lines[at]) > 0) return false;
  }
  return true;
}
