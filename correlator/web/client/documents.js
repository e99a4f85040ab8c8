/**
 * What is computed of job documents: one with a patch merged into it, the newest of several, and how much time a job still
 * needs. No clock, no I/O.
 */

/** @import { Job } from "../client.js" */

/**
 * Returns `target` with a JSON merge patch applied (RFC 7386). The arguments are not changed.
 * @param {any} target
 * @param {any} patch
 * @returns {any}
 */
export function merge(target, patch) {
  if (!isObject(patch)) return patch;
  // A Map, because assigning to a member named "__proto__" would set the prototype.
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, merge(merged.get(name), value));
  }
  return Object.fromEntries(merged);
}

/** @param {unknown} value @returns {value is {[member: string]: any}} */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @type {typeof import("../client.js").newest} */
export function newest(jobs) {
  /** @type {Job | null} */
  let last = null;
  for (const job of jobs) if (last === null || isNewer(job, last)) last = job;
  return last;
}

/**
 * True if `job` has the later start; for equal ones the higher lowest step ID, then the higher job ID. The same rule as
 * `JobView.age_key` of the daemon.
 * @param {Job} job
 * @param {Job} other
 */
function isNewer(job, other) {
  const [start, otherStart] = [job.started_at ?? "", other.started_at ?? ""];
  if (start !== otherStart) return start > otherStart;
  const [step, otherStep] = [firstStep(job), firstStep(other)];
  return step === otherStep ? job.job_id > other.job_id : step > otherStep;
}

/**
 * A running job without steps counts as newer than one with steps, an ended job without steps as older.
 * @param {Job} job
 */
function firstStep(job) {
  const ids = Object.keys(job.steps ?? {});
  if (ids.length === 0) return job.terminal ? 0 : Number.POSITIVE_INFINITY;
  return ids.reduce((least, id) => Math.min(least, Number(id)), Number.POSITIVE_INFINITY);
}

// -- What the forecast of a job says at a moment. Pure. `client/remaining.py` has the same rule.

const MOST_PERCENT = 99; // percent of a job that runs

/** @type {typeof import("../client.js").remaining} */
export function remaining(job, now, before = null) {
  const forecast = job?.forecast ?? null;
  if (job === null || forecast === null || job.terminal) return null;
  const [p50, p90] = [Date.parse(forecast.ends_at.p50), Date.parse(forecast.ends_at.p90)];
  if (Number.isNaN(p50 + p90)) return null;
  const { percent, basis } = job.progress;
  const moves = basis === "history" && forecast.state !== "overdue";
  const times = { asOf: Date.parse(forecast.as_of), started: Date.parse(job.started_at ?? ""), p50 };
  return {
    p50: Math.max(0, p50 - now) / 1000,
    p90: Math.max(0, p90 - now) / 1000,
    percent: Math.max(moves ? percentByClock(now, percent, times) : percent, before?.percent ?? 0),
    state: forecast.state,
  };
}

/**
 * Percent at `now`, which was `percent` at `asOf`: elapsed time of total time. The total is the one that `percent` came
 * from. Where `percent` was higher than that, because it must not fall, the total ends at p50, and percent stands until
 * the elapsed time has caught up. It stands from p50 on.
 * @param {number} now @param {number} percent @param {{asOf: number, started: number, p50: number}} times
 */
function percentByClock(now, percent, { asOf, started, p50 }) {
  const total = Math.max(p50 - started, percent > 0 ? (100 * (asOf - started)) / percent : 0);
  if (!(total > 0)) return percent; // also if the start is not known
  return Math.max(percent, Math.min(MOST_PERCENT, (100 * (Math.min(now, p50) - started)) / total));
}
