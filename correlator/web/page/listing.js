/**
 * Which jobs a list shows, and in which order. Pure.
 *
 * Always: failed first, then running, pending, and what has ended; the newest first within each. The order is kept from
 * update to update and made anew only when a job came, went, or moved, which a percent or a log line never does.
 */

import { moment } from "./times.js";
import { subject, text } from "./words.js";

const DAY = 86_400_000;

const RANKS = new Map([
  ["failed", 0],
  ["running", 1],
  ["pending", 2],
]);
const ENDED = 3;

export class Listing {
  #filter = null;
  #now = 0;
  #places = new Map();

  shown = Object.freeze([]);
  counts = new Map();
  /** Of the jobs that all but the status filter let through. */
  types = Object.freeze([]);

  /** `changed` null: everything may have. Returns whether `shown` is another list of IDs than before. */
  update(jobs, changed, filter, now) {
    const stale = now - this.#now > 60_000;
    const kept = changed !== null && filter === this.#filter && !stale;
    if (kept && ![...changed].some((id) => this.#moves(id, jobs.get(id), now))) {
      return false;
    }
    this.#filter = filter;
    this.#now = now;
    this.#places = new Map();
    this.counts = new Map();
    const types = new Set();
    const shown = [];
    for (const [id, job] of jobs) {
      const place = placeOf(job, filter, now);
      types.add(job.job_type);
      this.#places.set(id, place);
      if (!place.matches) {
        continue;
      }
      this.counts.set(job.status, (this.counts.get(job.status) ?? 0) + 1);
      if (filter.status.length === 0 || filter.status.includes(job.status)) {
        shown.push({ id, place });
      }
    }
    shown.sort(byPlace);
    this.shown = shown.map((entry) => entry.id);
    this.types = [...types].filter((type) => typeof type === "string").sort();
    return true;
  }

  #moves(id, job, now) {
    const before = this.#places.get(id);
    if (before === undefined || job === undefined) {
      return before !== undefined || job !== undefined;
    }
    const after = placeOf(job, this.#filter, now);
    return Object.keys(after).some((member) => before[member] !== after[member]);
  }
}

function placeOf(job, filter, now) {
  return {
    status: job.status,
    rank: RANKS.get(job.status) ?? ENDED,
    started: moment(job.started_at) ?? Number.POSITIVE_INFINITY,
    type: job.job_type,
    matches: matches(job, filter, now),
  };
}

function byPlace(a, b) {
  return a.place.rank - b.place.rank || b.place.started - a.place.started || (a.id < b.id ? -1 : 1);
}

/** Everything but the status: a text finds jobs of any day, else what has ended more than a day ago is left out. */
function matches(job, filter, now) {
  if (filter.type !== "" && job.job_type !== filter.type) {
    return false;
  }
  if (filter.q !== "") {
    const words = haystack(job);
    return filter.q
      .toLowerCase()
      .split(/\s+/)
      .every((word) => words.includes(word));
  }
  const started = moment(job.started_at);
  return filter.when === "all" || !job.terminal || started === null || now - started < DAY;
}

const haystacks = new WeakMap();

function haystack(job) {
  let words = haystacks.get(job);
  if (words === undefined) {
    const parts = [
      job.job_id,
      ...(job.external_ids ?? []),
      job.context_id,
      job.parent_job_id,
      subject(job),
      job.operation,
      job.job_type,
      job.category,
      job.owner,
      job.current_step,
      job.error,
      job.last_message?.text,
    ];
    words = [...parts, ...Object.values(job.metadata ?? {})].map(text).join("\n").toLowerCase();
    haystacks.set(job, words);
  }
  return words;
}
