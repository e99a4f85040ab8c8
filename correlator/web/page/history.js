/**
 * The jobs of one VM or context: pages of the daemon's history, with the documents of the live stream over them.
 *
 * Invariants: a job is present once, in its newest revision. The number of loaded jobs is bounded.
 */

import { moment } from "./times.js";
import { vmOf } from "./words.js";

export const PAGE = 100;
/** Jobs that one call of `load` adds, if there are so many. */
const MOST = 2000;
/** Jobs on the page. */
const MOST_REQUESTS = 30;
/** Requests in one call of `load`: each reads a bounded part of the daemon's database. */

export class History {
  #name;
  #jobs = new Map();
  #cursor = null;
  #closed = new AbortController();

  kind = null;
  contexts = new Set();
  /** `loading`, `more` (older jobs can be loaded), `end`, or `full`. */
  state = "loading";
  /** RFC 3339: all jobs after it have been read; null at the end. */
  searchedTo = null;
  trouble = null;

  constructor(name) {
    this.#name = name;
  }

  close() {
    this.#closed.abort();
  }

  /** The jobs, newest first. */
  get jobs() {
    const started = (job) => moment(job.started_at) ?? Number.POSITIVE_INFINITY;
    return [...this.#jobs.values()].sort((a, b) => started(b) - started(a) || (a.job_id < b.job_id ? 1 : -1));
  }

  /** Takes the jobs of a live update that belong here. Returns true if there are any. */
  follow(jobs, changed) {
    let any = false;
    for (const id of changed ?? jobs.keys()) {
      const job = jobs.get(id);
      if (job !== undefined && (this.#jobs.has(id) || this.#isOurs(job))) {
        this.#jobs.set(id, job);
        any = true;
      }
    }
    return any;
  }

  #isOurs(job) {
    const [vm, context] = [vmOf(job) === this.#name, job.context_id === this.#name];
    return this.kind === null ? vm || context : this.kind === "context" ? context : vm;
  }

  /** Loads `PAGE` more jobs, or up to the end. Calls `onPage` after each page of the daemon. */
  async load(session, onPage) {
    this.state = "loading";
    this.trouble = null;
    const wanted = this.#jobs.size + PAGE;
    let requests = 0;
    try {
      do {
        await this.#page(session, wanted - this.#jobs.size);
        requests += 1;
        onPage();
      } while (this.state === "loading" && this.#jobs.size < wanted && requests < MOST_REQUESTS);
      this.state = this.state === "loading" ? (this.#jobs.size < MOST ? "more" : "full") : this.state;
    } catch (error) {
      this.trouble = error instanceof Error ? error.message : String(error);
      this.state = "more";
    }
    if (!this.#closed.signal.aborted) {
      onPage();
    }
  }

  async #page(session, limit) {
    const address = session.api(`entities/${encodeURIComponent(this.#name)}`);
    address.searchParams.set("limit", String(Math.max(1, limit)));
    if (this.#cursor !== null) {
      address.searchParams.set("cursor", this.#cursor);
      address.searchParams.set("kind", this.kind);
    }
    const response = await fetch(address, { headers: session.headers, signal: this.#closed.signal });
    if (!response.ok) {
      throw new Error(`the daemon answered with HTTP status ${response.status}`);
    }
    const page = await response.json();
    if (this.kind === null) {
      this.kind = page.kind;
      this.#jobs = new Map([...this.#jobs].filter(([, job]) => this.#isOurs(job)));
    }
    for (const job of page.jobs) {
      if (!((this.#jobs.get(job.job_id)?.rev ?? -1) >= job.rev)) {
        this.#jobs.set(job.job_id, job);
      }
    }
    for (const context of page.contexts) {
      this.contexts.add(context);
    }
    this.#cursor = page.next_cursor;
    this.searchedTo = page.searched_to ?? null;
    this.trouble = page.complete ? null : page.reason;
    this.state = page.next_cursor === null ? "end" : "loading";
  }
}
