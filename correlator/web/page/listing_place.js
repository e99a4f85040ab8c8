/** What the order and the filters of the list need of a document. Pure. */

import { moment, periodOf } from "./times.js";
import { raw, subject, text } from "./words.js";

export const DAY = 86_400_000;

const RANKS = new Map([
  ["failed", 0],
  ["running", 1],
  ["pending", 2],
]);
export const FAILED = 0;
export const ENDED = 3;

const places = new WeakMap();

/** The sort key of a document. Documents are immutable, so it is computed once for each. */
export function placeOf(job) {
  let place = places.get(job);
  if (place === undefined) {
    place = {
      status: job.status,
      rank: RANKS.get(job.status) ?? ENDED,
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

const CHANGING = /[0-9a-f]{8}-[0-9a-f-]{27}|\d+/gi;
/** What differs between equal failures: IDs and numbers. */

/** A text that equal failures have in common; null if the job has not failed, or has no error. */
function failureOf(job) {
  const error = text(job.error);
  const parts = [text(job.instance), text(job.operation), error.replace(CHANGING, "#")];
  return job.status !== "failed" || error === "" ? null : parts.join("\n");
}

/**
 * All filters but those by status, forecast and silence. Without a text, ended jobs that started over a day ago are
 * hidden. `isFound`: the daemon has found the job for the text.
 */
export function matches(job, filter, now, isFound) {
  if (filter.type !== "" && job.job_type !== filter.type) {
    return false;
  }
  const { started } = placeOf(job);
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
  return filter.when === "all" || begin !== null || end !== null || !job.terminal || now - started < DAY;
}

const haystacks = new WeakMap();

function haystack(job) {
  let words = haystacks.get(job);
  if (words === undefined) {
    const parts = [
      job.job_id,
      job.instance,
      ...(job.external_ids ?? []),
      job.context_id,
      job.parent_job_id,
      subject(job),
      job.operation,
      job.title,
      job.job_type,
      job.category,
      job.owner,
      job.current_step,
      job.current_step_title,
      job.error,
      job.last_message?.text,
    ];
    words = [...parts, ...Object.values(job.metadata ?? {})].map(raw).join("\n").toLowerCase();
    haystacks.set(job, words);
  }
  return words;
}
