/** What the page says of a job's forecast, in words that leave its doubt visible. No word promises an end. */

import { remaining } from "../client.js";
import { about, duration, endTime, moment, rounded } from "./times.js";
import { counted, shownLateness } from "./words.js";

/**
 * The progress of one job after the other. Its percent does not fall while the same steps run, whatever it rests on; with
 * a forecast it never falls while the job runs, nor when it fails. `terminal/percents.py` does the same.
 */
export class Progress {
  #job = null;
  #left = null;
  #percent = null;

  /** `{left, percent}` at `now`: `left` as `remaining` of client.js returns it, `percent` null if it is not known. */
  at(job, now) {
    const was = this.#job?.job_id === job.job_id ? this.#job : null;
    const before = was === null ? null : this.#left;
    const hasFailed = job.terminal && job.status !== "completed";
    const left = remaining(job, now, before);
    this.#job = job;
    this.#left = left ?? (hasFailed ? before : null);
    const known = this.#left?.percent ?? job.progress?.percent ?? null;
    const isHeld = hasFailed ? before !== null : was !== null && runsOn(was, job);
    this.#percent = isHeld && known !== null ? Math.max(known, this.#percent ?? 0) : known;
    return { left, percent: this.#percent };
  }
}

/** True if the job runs, and no step has begun, or begun again, since the document `was`. */
function runsOn(was, job) {
  const [old, now] = [was.progress ?? {}, job.progress ?? {}];
  return !job.terminal && was.status === job.status && old.steps_seen === now.steps_seen && ended(old) <= ended(now);
}

function ended({ steps_done: done = 0, steps_failed: failed = 0, steps_skipped: skipped = 0 }) {
  return done + failed + skipped;
}

/**
 * What is said of a running job; null without a forecast.
 *
 * `words`: the time that is left. `source`: what the forecast rests on. `lateness`: word and icon of a job that is late
 * or overdue, else null, and `why` the reason. `brief`: the words for a row of the list.
 */
export function outlook(job, now, left) {
  if (left === null) {
    return null;
  }
  const { runs, ends_at: ends, state } = job.forecast;
  const [half, most] = [ends.p50, ends.p90].map((stamp) => endTime(Math.max(now, moment(stamp) ?? now), now));
  const [time, by] = [left.p50 * 1000, `left (by ${half})`];
  const earlier = counted(runs, "earlier run");
  const usual = { words: `${about(time)} ${by}`, source: `From ${earlier}; 9 of 10 ended by ${most}.`, why: "" };
  const said = { ...usual, ...special(state, `${rounded(time)} ${by}`, earlier, most) };
  return { brief: said.words, lateness: shownLateness(state), ...said };
}

function special(state, time, earlier, most) {
  switch (state) {
    case "rough":
      return {
        words: `rough estimate: ${time}`,
        brief: `perhaps ${time}`,
        source: `From only ${earlier}; probably by ${most}.`,
      };
    case "late":
      return { why: "longer at this point than 9 of 10 earlier runs" };
    case "overdue":
      return {
        words: `perhaps ${time}`,
        brief: `longer than ${earlier}`,
        source: `From ${earlier}, none of which took as long at this point.`,
        why: `longer at this point than any of ${earlier}`,
      };
    default:
      return {};
  }
}

/** How long an ended job took, compared with earlier runs; "" if that is not known. */
export function comparison(job) {
  const [started, ended] = [moment(job.started_at), moment(job.ended_at)];
  const compared = job.compared_with ?? null;
  if (compared === null || !job.terminal || started === null || ended === null) {
    return "";
  }
  const took = duration(ended - started);
  const typical = duration(compared.typical_seconds * 1000);
  if (job.status !== "completed") {
    return `Ended after ${took}; runs that complete typically take ${typical}.`;
  }
  const earlier = counted(compared.runs, "earlier run");
  return `Took ${took}, typical ${typical}; slower than ${share(compared.percentile)} ${earlier}.`;
}

/** "88 % of". Only the ends of the scale are "none of" and "all". */
function share(percentile) {
  if (percentile <= 0) {
    return "none of";
  }
  return percentile >= 100 ? "all" : `${Math.min(99, Math.max(1, Math.round(percentile)))} % of`;
}
