/**
 * The jobs that the list shows, and their order. Pure.
 *
 * Invariant: failed jobs first, then running, pending and ended ones; the newest first within each. The sorted list is
 * kept between updates. Only a job that appears, disappears or changes its place is moved; progress and log lines move
 * none. Apart from one copy of the list of IDs, the cost of a change does not grow with the number of jobs.
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

const FEW = 500;
/** Up to this number of jobs are moved one by one; with more, the list is sorted again. */

export class Listing {
  #filter = null;
  #now = 0;
  /** Job ID → its place, and whether it passes all filters but those by status and forecast. */
  #entries = new Map();
  #types = new Map();

  /** The shown entries in order. */
  #sorted = [];

  shown = Object.freeze([]);
  /** Numbers of jobs by status, and by state of the forecast. */
  counts = new Map();
  forecasts = new Map();
  /** The types of all jobs, sorted. */
  types = Object.freeze([]);

  /** `changed` null: any job may have changed. Returns true if `shown` is a new list of IDs. */
  update(jobs, changed, filter, now) {
    const stale = Math.abs(now - this.#now) > 60_000; // also backwards: at first `now` is this browser's clock
    if (changed === null || filter !== this.#filter || stale) {
      this.#renew(jobs, filter, now);
      return true;
    }
    const moved = [...changed].filter((id) => this.#moves(jobs.get(id), this.#entries.get(id)));
    if (moved.length === 0) {
      return false;
    }
    if (moved.length > FEW) {
      this.#renew(jobs, filter, this.#now);
      return true;
    }
    for (const id of moved) {
      this.#remove(id);
      if (jobs.has(id)) {
        this.#insert(this.#enter(id, jobs.get(id)));
      }
    }
    this.#publish();
    return true;
  }

  #renew(jobs, filter, now) {
    this.#filter = filter;
    this.#now = now;
    this.#entries = new Map();
    this.#types = new Map();
    this.counts = new Map();
    this.forecasts = new Map();
    this.#sorted = [];
    for (const [id, job] of jobs) {
      const entry = this.#enter(id, job);
      if (this.#isShown(entry)) {
        this.#sorted.push(entry);
      }
    }
    this.#sorted.sort(byPlace);
    this.#publish();
  }

  #publish() {
    this.shown = this.#sorted.map((entry) => entry.id);
    this.types = [...this.#types.keys()].sort();
  }

  #isShown({ place, matches: lets }) {
    const { status, forecast } = this.#filter;
    return lets && isChosen(status, place.status) && isChosen(forecast, place.forecast);
  }

  #enter(id, job) {
    const place = placeOf(job);
    const entry = { id, place, matches: matches(job, this.#filter, this.#now) };
    this.#entries.set(id, entry);
    this.#count(entry, 1);
    return entry;
  }

  #count({ place, matches: lets }, by) {
    add(this.#types, place.type, typeof place.type === "string" ? by : 0);
    add(this.counts, place.status, lets ? by : 0);
    add(this.forecasts, place.forecast, lets && place.forecast !== null ? by : 0);
  }

  #remove(id) {
    const entry = this.#entries.get(id);
    if (entry === undefined) {
      return;
    }
    this.#entries.delete(id);
    this.#count(entry, -1);
    if (this.#isShown(entry)) {
      this.#sorted.splice(this.#find(entry), 1);
    }
  }

  #insert(entry) {
    if (this.#isShown(entry)) {
      this.#sorted.splice(this.#find(entry), 0, entry);
    }
  }

  /** The index of an entry, or the index to insert it at. */
  #find(entry) {
    let [low, high] = [0, this.#sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (byPlace(this.#sorted[middle], entry) < 0) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  #moves(job, before) {
    if (before === undefined || job === undefined) {
      return before !== undefined || job !== undefined;
    }
    const after = placeOf(job);
    return (
      Object.keys(after).some((member) => before.place[member] !== after[member]) ||
      before.matches !== matches(job, this.#filter, this.#now)
    );
  }
}

function isChosen(chosen, value) {
  return chosen.length === 0 || chosen.includes(value);
}

function add(counts, key, by) {
  const count = (counts.get(key) ?? 0) + by;
  if (count > 0) {
    counts.set(key, count);
  } else {
    counts.delete(key);
  }
}

const places = new WeakMap();

/** The sort key of a document. Documents are immutable, so it is computed once for each. */
function placeOf(job) {
  let place = places.get(job);
  if (place === undefined) {
    place = {
      status: job.status,
      rank: RANKS.get(job.status) ?? ENDED,
      started: moment(job.started_at) ?? Number.POSITIVE_INFINITY,
      type: job.job_type,
      forecast: job.forecast?.state ?? null,
    };
    places.set(job, place);
  }
  return place;
}

function byPlace(a, b) {
  return a.place.rank - b.place.rank || later(a.place.started, b.place.started) || (a.id < b.id ? -1 : Number(a.id > b.id));
}

/** Compares starts. A difference would be NaN for two jobs without a start. */
function later(a, b) {
  return Number(a < b) - Number(a > b);
}

/** All filters but those by status and forecast. Without a text, ended jobs that started over a day ago are hidden. */
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
  return filter.when === "all" || !job.terminal || now - placeOf(job).started < DAY;
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
