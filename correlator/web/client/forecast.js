/** What the forecast of a job says at a moment. Pure. `client/remaining.py` has the same rule. */

const MOST = 99; // percent of a job that runs

/** @type {typeof import("../client.js").remaining} */
export function remaining(job, now, before = null) {
  const forecast = job?.forecast ?? null;
  if (job === null || forecast === null || job.terminal) return null;
  const [p50, p90] = [Date.parse(forecast.ends_at.p50), Date.parse(forecast.ends_at.p90)];
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
  return Math.max(percent, Math.min(MOST, (100 * (Math.min(now, p50) - started)) / total));
}
