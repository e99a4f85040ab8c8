/**
 * The jobs that the list shows, and their order. Pure.
 *
 * Invariant: without a chosen order, stalled and overdue jobs come first, then failures of the last hour, those of the
 * last day as one row that unfolds, running jobs by the end of their forecast, pending and all others; the newest first
 * within each, of failures those that ended last. A failure that is marked as seen is one of the others. Of equal failures only the newest is shown.
 *
 * The sorted list is kept between updates. Only a job that appears, disappears or changes its place is moved; progress
 * and log lines move none, nor does a forecast whose end moves little. Apart from one copy of the list of IDs, the cost
 * of a change grows with the logarithm of the number of jobs.
 */

import { moment, periodOf } from "./times.js";
import { operations, raw, subject, text } from "./words.js";

const NONE = Object.freeze({ seen: new Set(), found: new Map() });

export const OLDER = "";
/** In place of an ID, in the list of those that are shown: the row of the older failures. No job has it. */

const FEW = 500;
/** Up to this number of jobs are moved one by one; with more, the list is sorted again. */

export class Listing {
  #filter = null;
  #now = 0;
  #given = NONE;
  /** Job ID → its place, and whether it passes all filters but those by status and forecast. */
  #entries = new Map();
  #types = new Map();

  /** The shown entries in order. */
  #sorted = [];

  shown = Object.freeze([]);
  /** Numbers of jobs by status, and by state of the forecast. */
  counts = new Map();
  forecasts = new Map();
  /** Numbers of jobs by appliance, whatever appliances are chosen; empty where no job names one. */
  instances = new Map();
  /** The types of all jobs, sorted. */
  types = Object.freeze([]);
  /** The number of stalled jobs. */
  stalled = 0;
  /** Job ID → the number of older failures that are equal to it and are not shown. */
  equal = new Map();
  /** The number of failed jobs in `counts` that are marked as seen. */
  seen = 0;
  /** The IDs of the failed jobs of the last day, and of those that do not come first because they are marked as seen. */
  unseen = Object.freeze([]);
  seenFailed = Object.freeze([]);
  /** The IDs of those among `unseen` that failed over an hour ago. */
  older = Object.freeze([]);

  /**
   * `changed` null: any job may have changed. `given`: the failed jobs that are marked as `seen` (a set of IDs), and the
   * jobs that the daemon has `found` for the text (a map by ID), whatever their documents show of it. Returns true if
   * `shown` is a new list of IDs.
   */
  update(jobs, changed, filter, now, given = NONE) {
    const same = given.seen === this.#given.seen && given.found === this.#given.found;
    this.#given = given;
    const stale = Math.abs(now - this.#now) > 60_000; // also backwards: at first `now` is this browser's clock
    if (changed === null || filter !== this.#filter || stale || !same) {
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
    this.instances = new Map();
    this.stalled = 0;
    this.seen = 0;
    this.#sorted = [];
    for (const [id, job] of jobs) {
      const entry = this.#enter(id, job);
      if (this.#isShown(entry)) {
        this.#sorted.push(entry);
      }
    }
    this.#sorted.sort(this.#compare);
    this.#publish();
  }

  /** Of equal failures only the newest of an appliance is shown, and of older ones a row that unfolds, unless they were chosen. */
  #publish() {
    const { status, q, sort = "", older = "" } = this.#filter;
    const groups = status.length === 0 && q === "" && this.#isByUrgency;
    const folds = groups && sort === "";
    const newest = new Map();
    const shown = [];
    [this.equal, this.unseen, this.older, this.seenFailed] = [new Map(), [], [], []];
    for (const { id, rank, isSeen, place: { failure } } of this.#sorted) {
      if (isSeen) {
        this.seenFailed.push(id);
      }
      if (rank === FAILED || rank === OLD) {
        this.unseen.push(id);
        if (rank === OLD && this.older.push(id) === 1 && folds) {
          shown.push(OLDER);
        }
        const key = `${rank} ${failure}`;
        const first = groups && failure !== null ? newest.get(key) : undefined;
        if (first !== undefined) {
          this.equal.set(first, (this.equal.get(first) ?? 0) + 1);
          continue;
        }
        newest.set(key, id);
        if (rank === OLD && folds && older === "") {
          continue;
        }
      }
      shown.push(id);
    }
    this.shown = shown;
    this.types = [...this.#types.keys()].sort();
  }

  #isShown({ place, matches: lets, isHere }) {
    const { status, forecast, stalled = "" } = this.#filter;
    return (
      lets &&
      isHere &&
      isChosen(status, place.status) &&
      isChosen(forecast, place.forecast) &&
      (stalled === "" || place.stalled)
    );
  }

  #enter(id, job) {
    const place = placeOf(job);
    const isSeen = place.rank === FAILED && this.#given.seen.has(id);
    const isHere = isChosen(this.#filter.instance ?? [], place.instance);
    const rank = isSeen ? ENDED : place.rank === FAILED ? this.#rankOfFailure(place) : place.rank;
    const entry = { id, place, rank, matches: this.#matches(id, job), isHere, isSeen };
    this.#entries.set(id, entry);
    this.#count(entry, 1);
    return entry;
  }

  #rankOfFailure(place) {
    const age = this.#now - endOf(place);
    return age < HOUR ? FAILED : age < DAY ? OLD : ENDED;
  }

  #count({ place, matches: fits, isHere, isSeen }, by) {
    const lets = fits && isHere;
    add(this.#types, place.type, typeof place.type === "string" ? by : 0);
    add(this.instances, place.instance, fits && place.instance !== "" ? by : 0);
    add(this.counts, place.status, lets ? by : 0);
    add(this.forecasts, place.forecast, lets && place.forecast !== null ? by : 0);
    this.stalled += lets && place.stalled ? by : 0;
    this.seen += lets && isSeen ? by : 0;
  }

  #matches(id, job) {
    return matches(job, this.#filter, this.#now, this.#given.found.has(id));
  }

  /** The order of two entries. It does not change between two calls of `#renew`. */
  #compare = (a, b) =>
    this.#sorting(a, b) ||
    a.rank - b.rank ||
    (a.rank === RUNNING && ordered(a.place.ends, b.place.ends, 1)) ||
    ((a.rank === FAILED || a.rank === OLD) && later(endOf(a.place), endOf(b.place))) ||
    later(a.place.started, b.place.started) ||
    alphabetical(a.id, b.id);

  get #isByUrgency() {
    const { sort = "" } = this.#filter;
    return sort === "" || sort.endsWith("appliance");
  }

  #sorting(a, b) {
    const { sort = "" } = this.#filter;
    const by = sort.startsWith("-") ? -1 : 1;
    if (sort === "") {
      return 0;
    }
    return sort.endsWith("appliance")
      ? by * alphabetical(a.place.instance, b.place.instance)
      : ordered(this.#value(a, sort), this.#value(b, sort), by);
  }

  #value({ place: { started, ended, ends } }, sort) {
    switch (sort.replace("-", "")) {
      case "start":
        return started;
      case "duration":
        return (ended ?? this.#now) - started;
      default:
        return ends;
    }
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
      if (this.#compare(this.#sorted[middle], entry) < 0) {
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
      Object.keys(after).some((member) => before.place[member] !== after[member] && member !== "ends") ||
      this.#endMoves(before.place.ends, after.ends) ||
      before.matches !== this.#matches(before.id, job)
    );
  }

  /** True if a forecast has moved enough for another place: with every step, many move by a little. */
  #endMoves(before, after) {
    if (before === null || after === null || (this.#filter.sort ?? "").endsWith("end")) {
      return before !== after;
    }
    return this.#isByUrgency && Math.abs(after - before) > Math.max(LITTLE, (after - this.#now) * SHARE);
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

/** Compares two numbers, ascending if `by` is 1; what is not a finite number comes last. */
function ordered(a, b, by) {
  const [known, other] = [Number.isFinite(a), Number.isFinite(b)];
  return known && other ? by * (a - b) : Number(other) - Number(known);
}

function alphabetical(a, b) {
  return a < b ? -1 : Number(a > b);
}

/** Compares starts. A difference would be NaN for two jobs without a start. */
function later(a, b) {
  return Number(a < b) - Number(a > b);
}

// -- What the order and the filters of the list need of a document. Pure.

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

const [STALLED, OVERDUE, FAILED, OLD, RUNNING, PENDING, ENDED] = Array(7).keys();
/** The ranks in the order of the list; `OLD` is a failure of over an hour ago. */

const RANKS = new Map([
  ["failed", FAILED],
  ["running", RUNNING],
  ["pending", PENDING],
]);

const LITTLE = 5000;
const SHARE = 0.1;
/** Milliseconds, and share of the remaining time, by which the end of a forecast moves without its job. */

const places = new WeakMap();

/** The sort key of a document. Documents are immutable, so it is computed once for each. */
function placeOf(job) {
  let place = places.get(job);
  if (place === undefined) {
    place = {
      status: job.status,
      rank: rankOf(job),
      started: moment(job.started_at) ?? Number.POSITIVE_INFINITY,
      type: job.job_type,
      instance: text(job.instance),
      ended: moment(job.ended_at),
      ends: moment(job.forecast?.ends_at?.p50),
      forecast: job.forecast?.state ?? null,
      stalled: job.stalled === true,
      failure: failureOf(job),
    };
    places.set(job, place);
  }
  return place;
}

function rankOf(job) {
  const rank = RANKS.get(job.status) ?? ENDED;
  if (rank !== RUNNING) {
    return rank;
  }
  return job.stalled ? STALLED : job.forecast?.state === "overdue" ? OVERDUE : rank;
}

/** True for a job that comes before failures. */
export function isUrgent(job) {
  return placeOf(job).rank < FAILED;
}

/** When a job ended, or else started; in the future if neither is known. */
function endOf({ ended, started }) {
  return ended ?? started;
}

/** What failures that are alike have in common on an appliance; null if the job has not failed, or has no reason. */
function failureOf(job) {
  const fingerprint = job.failure?.fingerprint ?? "";
  return fingerprint === "" ? null : `${text(job.instance)}\n${fingerprint}`;
}

/**
 * All filters but those by status, forecast and silence. Without a text, jobs that ended over a day ago are hidden.
 * `isFound`: the daemon has found the job for the text.
 */
function matches(job, filter, now, isFound) {
  if (filter.type !== "" && job.job_type !== filter.type) {
    return false;
  }
  const place = placeOf(job);
  const { started } = place;
  const [begin, end] = periodOf(filter);
  if ((begin !== null && !(started >= begin)) || (end !== null && !(started < end))) {
    return false;
  }
  if (isFound) {
    return true;
  }
  if (filter.q !== "") {
    const words = haystack(job);
    return filter.q
      .toLowerCase()
      .split(/\s+/)
      .every((word) => words.includes(word));
  }
  return filter.when === "all" || begin !== null || end !== null || !job.terminal || now - endOf(place) < DAY;
}

const haystacks = new WeakMap();

function haystack(job) {
  let words = haystacks.get(job);
  if (words === undefined) {
    words = textsOf(job).map(([, value]) => raw(value)).join("\n").toLowerCase();
    haystacks.set(job, words);
  }
  return words;
}

/** What a text is sought in, as `[name, value]`. */
function textsOf(job) {
  return [
    ["ID", job.job_id],
    ["appliance", job.instance],
    ...(job.external_ids ?? []).map((id) => ["ID", id]),
    ["context", job.context_id],
    ["parent", job.parent_job_id],
    ["name", subject(job)],
    ["operation", job.operation],
    ["operation", job.title],
    ["type", job.job_type],
    ["category", job.category],
    ["owner", job.owner],
    ["step", job.current_step],
    ["step", job.current_step_title],
    ["error", job.error],
    ["last line", job.last_message?.text],
    ...Object.entries(job.metadata ?? {}),
  ];
}

const BEFORE = 12;
const EXCERPT = 200;
const READ = 40;
/** Characters: of an excerpt before the word and in all; of an error that its row surely shows. */

/**
 * Why a job is found by the text `q`, if its row does not show it: where the first `word` is that is not in the row, and
 * an excerpt of that; null if the row has all words. The daemon also searches steps, and IDs of the log: then both are "".
 */
export function foundBy(job, q) {
  const error = job.status === "failed" ? text(job.error).slice(0, READ) : "";
  const shown = [subject(job), ...operations(job).slice(0, 1), error].join("\n").toLowerCase();
  const word = q.toLowerCase().split(/\s+/).find((each) => !shown.includes(each));
  if (word === undefined) {
    return null;
  }
  const [where, value] = textsOf(job).find(([, each]) => text(each).toLowerCase().includes(word)) ?? ["", ""];
  const from = Math.max(0, text(value).toLowerCase().indexOf(word) - BEFORE);
  return { word, where: text(where), excerpt: `${from > 0 ? "…" : ""}${text(value).slice(from, from + EXCERPT)}` };
}

const LIKELY = 8;
/** Characters of a text that is not in an ID by chance. */

/** True if a short text is nowhere but in an ID of a job, which is a random one: of "503" no UUID is meant. */
export function isChance(job, q) {
  return job === undefined || (q.length < LIKELY && ["ID", "parent"].includes(foundBy(job, q)?.where));
}
