/**
 * How the newest run of each operation compares with the runs before it. Pure.
 *
 * The same rule as `correlator.jobs.trends` of the daemon (tests/data/trends.json).
 */

const TYPICAL_RUNS = 20;
/** Completed runs before the newest one, at the most, whose median is the typical duration. */

/** The trend of each operation of `jobs`, which are the newest first, in the order of its newest run. */
export function trends(jobs) {
  const operations = new Map();
  for (const job of jobs) {
    const key = JSON.stringify([job.job_type ?? null, job.operation ?? null]);
    operations.set(key, [...(operations.get(key) ?? []), job]);
  }
  return [...operations.values()].map(trend);
}

function trend(runs) {
  const count = (status) => runs.filter((run) => run.status === status).length;
  const completed = runs.filter((run) => run.status === "completed" && typeof run.duration_seconds === "number");
  const [newest = null, ...earlier] = completed.slice(0, TYPICAL_RUNS + 1).map((run) => run.duration_seconds);
  const typical = median(earlier);
  return {
    job_type: runs[0].job_type ?? null,
    operation: runs[0].operation ?? null,
    runs: runs.length,
    completed: count("completed"),
    failed: count("failed"),
    newest_seconds: newest,
    typical_seconds: typical,
    ratio: newest === null || !typical ? null : newest / typical,
  };
}

function median(numbers) {
  if (numbers.length === 0) {
    return null;
  }
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
