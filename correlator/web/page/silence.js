/** Detects running jobs that have not written a log row for a while. Pure. */

import { moment, roughly } from "./times.js";

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
