/**
 * The log of one job, by any of its IDs: its history and its live lines, each line once, the newest `limit` of them.
 *
 * A line arrives by the stream, by a page of the history, or by both; `Logbook` merges them by event ID. The history is
 * read when the job appears, and again when lines may be missing: after an interruption, after lines were dropped, and
 * while the client polls. If it cannot be read, that is retried.
 */

import { LogHistory } from "./log_history.js";
import { Logbook } from "./logbook.js";
import { acquire } from "./shared.js";

/** @import { JobLogOptions, JobLogState } from "../react.js" */
/** @import { LogLine, SharedOptions, Subscription, Update } from "../client.js" */

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
    this.#book = new Logbook({ lines: limit });
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
    this.#book = new Logbook({ lines: this.#limit });
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
      const error = isWhole ? null : "the log is too long to be read to its end";
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
