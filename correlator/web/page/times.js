/** Times and durations as text. Pure; moments are milliseconds since 1970. The reader's time zone; UTC in titles. */

const CLOCK = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "medium",
  hourCycle: "h23",
});

/** The moment that an RFC 3339 text names; null for anything else. */
export function moment(stamp) {
  const at = typeof stamp === "string" ? Date.parse(stamp) : Number.NaN;
  return Number.isNaN(at) ? null : at;
}

/** "14:03:12", as of logs and of the last answer. */
export function clockTime(at) {
  return at === null ? "" : CLOCK.format(at);
}

/** "14:03:12" today, "24 Nov, 14:03:12" on any other day. */
export function shortTime(at, now) {
  if (at === null) {
    return "";
  }
  const today = new Date(at).toDateString() === new Date(now).toDateString();
  return today ? CLOCK.format(at) : `${DAY.format(at)}, ${CLOCK.format(at)}`;
}

export function fullTime(at) {
  return at === null ? "" : FULL.format(at);
}

/** For titles: to the microsecond, as the document has it. */
export function inUtc(stamp) {
  return typeof stamp === "string" ? stamp.replace("T", " ").replace("Z", " UTC") : "";
}

/** "3.2 s", "48 s", "2 min 05 s", "3 h 07 min", "2 d 4 h": two units, so that a glance is enough. */
export function elapsed(milliseconds) {
  const seconds = Math.max(0, milliseconds) / 1000;
  const whole = Math.floor(seconds);
  if (whole < 60) {
    return `${whole} s`;
  }
  if (whole < 3600) {
    return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  }
  if (whole < 86_400) {
    return `${Math.floor(whole / 3600)} h ${pad(Math.floor(whole / 60) % 60)} min`;
  }
  return `${Math.floor(whole / 86_400)} d ${Math.floor(whole / 3600) % 24} h`;
}

/** Of what is over: with a decimal, or in milliseconds, where it was short. None at all is a clock of whole seconds. */
export function duration(milliseconds) {
  if (milliseconds <= 0) {
    return "< 1 s";
  }
  if (milliseconds < 1000) {
    return `${Math.max(1, Math.round(milliseconds))} ms`;
  }
  return milliseconds < 9950
    ? `${(milliseconds / 1000).toFixed(1)} s`
    : elapsed(Math.round(milliseconds / 1000) * 1000);
}

/** "4 min": how long a silence has lasted, without seconds that would tick. */
export function roughly(milliseconds) {
  const minutes = Math.floor(Math.max(0, milliseconds) / 60_000);
  if (minutes < 60) {
    return `${minutes} min`;
  }
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min` : `${Math.floor(minutes / 1440)} d`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}
