/** Job documents: how a patch is merged into one, and which of several is the newest. No clock, no I/O. */

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
