/** Whether a job that runs still gives a sign of life. Pure. */

import { moment, roughly } from "./times.js";

const QUIET = 60_000;
/** Milliseconds without a log row that are worth saying. */

/** `{silent, since}`: the words for a silence and the moment of the last sign; both null while there is none. */
export function liveliness(job, now) {
  const since = moment(job.last_event_at) ?? moment(job.started_at);
  if (job.status !== "running" || since === null || (now - since < QUIET && !job.stalled)) {
    return { silent: null, since: null };
  }
  const long = `silent for ${roughly(now - since)}`;
  return { silent: job.stalled ? `Stalled, ${long}` : long, since };
}
