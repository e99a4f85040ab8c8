/** What the page says of a job's forecast and of its silence, in words that leave doubt visible. No word promises an end. */

import { remaining } from "../client.js";
import { about, duration, endTime, moment, roughly, rounded } from "./times.js";
import { counted, shownLateness } from "./words.js";

/**
 * The progress of one job after the other. Its percent goes on by the clock, and goes back only where a document has less
 * than the one before: the daemon's do not while the same steps run. `Percents` in terminal/formats.py does the same.
 */
export class Progress {
  #job = null;
  #percent = null;

  /** `{left, percent}` at `now`: `left` as `remaining` of client.js returns it, `percent` null if it is not known. */
  at(job, now) {
    const goesOn = this.#job?.job_id === job.job_id && percentOf(job) >= percentOf(this.#job);
    const left = remaining(job, now);
    const percent = left?.percent ?? percentOf(job);
    this.#job = job;
    this.#percent = goesOn && percent !== null ? Math.max(percent, this.#percent) : percent;
    return { left, percent: this.#percent };
  }
}

function percentOf(job) {
  return job.progress?.percent ?? null;
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
        words: `longer than ${earlier}`,
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

// -- Detects running jobs that have not written a log row for a while. Pure.

const QUIET = 60_000;
/** Milliseconds without a log row after which a job is shown as silent. */

/** `{silent, since}`: a text about the silence and the time of the last log row; both null for an active job. */
export function liveliness(job, now) {
  const since = moment(job.last_event_at) ?? moment(job.started_at);
  if (job.status !== "running" || since === null || (now - since < QUIET && !job.stalled)) {
    return { silent: null, since: null };
  }
  const long = `silent for ${roughly(now - since)}`;
  return { silent: job.stalled ? `Stalled, ${long}` : long, since };
}
