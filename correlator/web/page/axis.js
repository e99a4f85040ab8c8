/** A time axis: which moments get a line, and where on it a moment stands. Pure. */

const STRIDES = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
].map((seconds) => seconds * 1000);
const MOST = 5;

/** From the first start to the end, or now; at least a second, so that nothing divides by nothing. */
export function axisOf(job, steps, now, timed) {
  const starts = [timed(job.started_at), ...steps.map((step) => timed(step.started_at))].filter((at) => at !== null);
  const from = starts.length === 0 ? now : Math.min(...starts);
  const ends = [timed(job.ended_at), ...steps.map((step) => timed(step.ended_at))].filter((at) => at !== null);
  const to = Math.max(from + 1000, ...ends, job.terminal ? 0 : now);
  return { from, to, place: (at) => (100 * Math.min(Math.max(at - from, 0), to - from)) / (to - from) };
}

const CROWDED = 0.93;
/** Of the axis: a label further right would stand beyond its end. */

/** `[{at, label}]`, at most six. */
export function ticksOf({ from, to }) {
  const span = to - from;
  const stride =
    STRIDES.find((each) => span / each <= MOST) ?? Math.ceil(span / MOST / STRIDES.at(-1)) * STRIDES.at(-1);
  const ticks = [];
  for (let after = 0; after <= span * CROWDED; after += stride) {
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
