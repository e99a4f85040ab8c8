/** The log lines of one job from the daemon's database, page by page. A read continues where the last one ended. */

/** @import { Level, LogPage } from "../client.js" */
/** @import { Correlator } from "./correlator.js" */

const MOST_PAGES = 200; // in one read, so that a job of a million lines does not block the page

export class LogHistory {
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
    this.#onLines(page.events);
    return page.more;
  }
}
