/** A time axis: the moments that get a tick, and the position of a moment on it. Pure. */

const STRIDES = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
].map((seconds) => seconds * 1000);
const MOST = 5;

const MOST_AHEAD = 2;
/** The longest axis, as a multiple of the time from the start to p50: p90 may be far away. */

const BROKEN = 75;
/** Percent of an axis before its break. */

/**
 * From the first start to the end, or to now; at least one second, to avoid a division by zero. With a forecast
 * the axis goes on to its p90; `reached` is where the part that has happened ends. If a running job has been silent, since
 * `silentSince`, for longer than all before, the axis breaks there (`breaksAt`): the steps keep their width.
 */
export function axisOf(job, steps, now, timed, silentSince = null) {
  const span = spanOf(steps, timed);
  const begin = Math.min(timed(job.started_at) ?? Number.POSITIVE_INFINITY, span.from);
  const from = begin === Number.POSITIVE_INFINITY ? now : begin;
  const reached = Math.max(from + 1000, timed(job.ended_at) ?? 0, span.to, job.terminal ? 0 : now);
  if (!job.terminal && silentSince !== null && silentSince > from && reached - silentSince > silentSince - from) {
    return broken(from, silentSince, reached);
  }
  const [half, most] = [job.forecast?.ends_at.p50, job.forecast?.ends_at.p90].map((stamp) => timed(stamp) ?? reached);
  const to = Math.max(reached, Math.min(most, from + MOST_AHEAD * (Math.max(reached, half) - from)));
  return { from, reached, to, breaksAt: null, place: (at) => (100 * Math.min(Math.max(at - from, 0), to - from)) / (to - from) };
}

const spans = new WeakMap();

/** The first start and the last end of steps. They are computed once for each list: thousands of times cost too much. */
function spanOf(steps, timed) {
  let span = spans.get(steps);
  if (span === undefined) {
    span = { from: Number.POSITIVE_INFINITY, to: Number.NEGATIVE_INFINITY };
    for (const { started_at: start, ended_at: end } of steps) {
      span.from = Math.min(span.from, timed(start) ?? Number.POSITIVE_INFINITY);
      span.to = Math.max(span.to, timed(end) ?? Number.NEGATIVE_INFINITY);
    }
    spans.set(steps, span);
  }
  return span;
}

function broken(from, breaksAt, reached) {
  const share = (at, begin, end) => Math.min(1, Math.max(0, (at - begin) / (end - begin)));
  const place = (at) => BROKEN * share(at, from, breaksAt) + (100 - BROKEN) * share(at, breaksAt, reached);
  return { from, reached, to: reached, breaksAt, place };
}

const CROWDED = 0.93;
const CROWDED_BY_BREAK = 0.82;
/** Share of the axis, or of its part before a break. A label further right would extend beyond that. */

/** The ticks as `[{at, label}]`, at most six; none after a break. */
export function ticksOf({ from, to, breaksAt }) {
  const span = (breaksAt ?? to) - from;
  const stride =
    STRIDES.find((each) => span / each <= MOST) ?? Math.ceil(span / MOST / STRIDES.at(-1)) * STRIDES.at(-1);
  const ticks = [];
  const last = span * (breaksAt === null ? CROWDED : CROWDED_BY_BREAK);
  for (let after = 0; after <= last; after += stride) {
    ticks.push({ at: from + after, label: label(after / 1000) });
  }
  return ticks;
}

function label(seconds) {
  if (seconds < 60) {
    return seconds === 0 ? "0" : `${seconds} s`;
  }
  if (seconds < 3600) {
    return seconds % 60 === 0
      ? `${seconds / 60} min`
      : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
  if (seconds < 86_400) {
    const minutes = (seconds / 60) % 60;
    return minutes === 0 ? `${seconds / 3600} h` : `${Math.floor(seconds / 3600)} h ${minutes}`;
  }
  return `${+(seconds / 86_400).toFixed(1)} d`;
}
