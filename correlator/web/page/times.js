/**
 * Times and durations as text, in the user's time zone or in UTC; UTC in titles. Moments are milliseconds since 1970.
 *
 * The zone is the only state: `useUtc` changes it, and then everything has to be drawn again. `Clock` estimates the
 * daemon's time.
 */

let inZone = formats(undefined);

function formats(timeZone) {
  const format = (options) => new Intl.DateTimeFormat(undefined, { ...options, timeZone, hourCycle: "h23" });
  return {
    isUtc: timeZone === "UTC",
    clock: format({ hour: "2-digit", minute: "2-digit", second: "2-digit" }),
    day: format({ day: "numeric", month: "short" }),
    minute: format({ hour: "2-digit", minute: "2-digit" }),
    date: format({ day: "numeric", month: "short", year: "numeric" }),
    full: format({ dateStyle: "medium", timeStyle: "medium" }),
    name: format({ timeZoneName: "short" }),
  };
}

/** Shows all times in UTC, or in the user's time zone. */
export function useUtc(wanted) {
  inZone = formats(wanted ? "UTC" : undefined);
}

export function isUtc() {
  return inZone.isUtc;
}

/** The name of the zone of all times at a moment: "CET", "GMT+2", "UTC". */
export function zoneName(at) {
  return inZone.name.formatToParts(at).find((part) => part.type === "timeZoneName")?.value ?? "";
}

/** Parses an RFC 3339 time; null for anything else. */
export function moment(stamp) {
  const at = typeof stamp === "string" ? Date.parse(stamp) : Number.NaN;
  return Number.isNaN(at) ? null : at;
}

/** "14:03:12". */
export function clockTime(at) {
  return at === null ? "" : inZone.clock.format(at);
}

/** The day of a moment in the zone of all times. `dayOf` of the result is the same. */
export function dayOf(at) {
  const when = new Date(at);
  return inZone.isUtc ? when.toISOString().slice(0, 10) : when.toDateString();
}

/** The day of a moment, or of what `dayOf` returned, as "2026-10-31". */
export function isoDay(at) {
  const when = new Date(at);
  return new Date(when.getTime() - (inZone.isUtc ? 0 : when.getTimezoneOffset() * 60_000)).toISOString().slice(0, 10);
}

/** The begin of a day, "2026-10-31", or of the day that is `later` days after it; null for no day. */
function beginOfDay(day, later = 0) {
  const [year, month, date] = day.split("-").map(Number);
  const at = inZone.isUtc ? Date.UTC(year, month - 1, date + later) : new Date(year, month - 1, date + later).getTime();
  return Number.isNaN(at) ? null : at;
}

/** The moments of the period of a filter: from the begin of its first day to the end of its last; null without one. */
export function periodOf({ from = "", to = "" }) {
  return [from === "" ? null : beginOfDay(from), to === "" ? null : beginOfDay(to, 1)];
}

/** "24 Nov", with its year if that is not the one of `now`. */
function date(at, now) {
  return (isoDay(at).slice(0, 4) === isoDay(now).slice(0, 4) ? inZone.day : inZone.date).format(at);
}

/** `now` may be its day. "14:03:12" today, "24 Nov, 14:03:12" on another day, "24 Nov 2025, 14:03:12" in another year. */
export function shortTime(at, now) {
  if (at === null) {
    return "";
  }
  return dayOf(at) === dayOf(now) ? inZone.clock.format(at) : `${date(at, now)}, ${inZone.clock.format(at)}`;
}

/** The minute today, "14:03", or another day, "24 Nov". */
export function dayTime(at, now) {
  return at === null ? "" : dayOf(at) === dayOf(now) ? inZone.minute.format(at) : date(at, now);
}

const FAR = 300 * 86_400_000;
/** Milliseconds after which a date needs no minute. */

/** The minute in which something is expected: "14:32", as `shortTime` on another day, "25 Nov 2031" if far away. */
export function endTime(at, now) {
  const end = Math.ceil(at / 60_000) * 60_000;
  if (dayOf(end) === dayOf(now)) {
    return inZone.minute.format(end);
  }
  return end - now > FAR ? inZone.date.format(end) : `${date(end, now)}, ${inZone.minute.format(end)}`;
}

export function fullTime(at) {
  return at === null ? "" : inZone.full.format(at);
}

/** The time of a document in UTC, with all its digits, for titles. */
export function inUtc(stamp) {
  return typeof stamp === "string" ? stamp.replace("T", " ").replace("Z", " UTC") : "";
}

/** "3.2 s", "48 s", "2 min 05 s", "3 h 07 min", "2 d 4 h": at most two units. */
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

/** A final duration; a short one with a decimal or in milliseconds. 0 means a clock of whole seconds. */
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

/** Milliseconds that a job took, or has taken so far; null without a start. */
export function took(job, now) {
  const [started, ended] = [moment(job.started_at), moment(job.ended_at)];
  return started === null || (job.terminal && ended === null) ? null : Math.max(0, (ended ?? now) - started);
}

/** The same as text; "" without a start. */
export function lasting(job, now) {
  const milliseconds = took(job, now);
  if (milliseconds === null) {
    return "";
  }
  return moment(job.ended_at) === null ? elapsed(milliseconds) : duration(milliseconds);
}

/** "4 min": a duration without seconds. */
export function roughly(milliseconds) {
  const minutes = Math.floor(Math.max(0, milliseconds) / 60_000);
  if (minutes < 60) {
    return `${minutes} min`;
  }
  return minutes < 1440 ? `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min` : `${Math.floor(minutes / 1440)} d`;
}

/** "12 s", "3 min", "2 h 05 min". */
export function brief(milliseconds) {
  return milliseconds < 60_000 ? `${Math.max(0, Math.floor(milliseconds / 1000))} s` : roughly(milliseconds);
}

const FEW = 10_000;
/** Milliseconds below which an estimate has no number. */
const GRAINS = [
  [57.5, 5],
  [1170, 60],
  [86_250, 300],
  [Number.POSITIVE_INFINITY, 3600],
];
/** Seconds, and what an estimate below them is rounded to. */

/** "3 min": an estimate, rounded as far as it is uncertain. */
export function rounded(milliseconds) {
  if (milliseconds < FEW) {
    return "a few seconds";
  }
  const exact = milliseconds / 1000;
  const [, grain] = GRAINS.find(([below]) => exact < below);
  const seconds = Math.round(exact / grain) * grain;
  if (seconds < 3600) {
    return seconds < 60 ? `${seconds} s` : `${seconds / 60} min`;
  }
  const [unit, part, words] = seconds < 86_400 ? [3600, 60, ["h", "min"]] : [86_400, 3600, ["d", "h"]];
  const rest = (seconds % unit) / part;
  return `${Math.floor(seconds / unit)} ${words[0]}${rest === 0 ? "" : ` ${rest} ${words[1]}`}`;
}

/** "about 3 min", "a few seconds". */
export function about(milliseconds) {
  return milliseconds < FEW ? rounded(milliseconds) : `about ${rounded(milliseconds)}`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}

// -- An estimate of the daemon's clock. Documents have the daemon's times, and the clock of a tablet may be wrong.
//
// The difference comes from messages with the daemon's current time (`ahead_ms` of client.js). A document cannot be
// used for it: its `updated_at` is the time of its last change, which may be hours ago.

const SILENCE = 25_000;
/** Milliseconds without a message after which client.js reports a connection as stale. */

export class Clock {
  #ahead = 0;
  #wasLive = false;
  #stopped = null;

  /** Updates the state of the connection. While it is not live, the clock stops at `asOf`. */
  connected(connection, here = Date.now()) {
    this.#ahead = connection.ahead_ms ?? this.#ahead;
    if (connection.state === "live") {
      this.#wasLive = true;
      this.#stopped = null;
    } else if (this.#stopped === null && this.#wasLive) {
      this.#stopped = here - doubtful(connection);
    }
  }

  /** Call it when documents have changed: while the connection is not live, `asOf` becomes the current time. */
  documentsChanged(changed, here = Date.now()) {
    if (this.#stopped !== null && changed.size > 0) {
      this.#stopped = here;
    }
  }

  /** The time, by this browser's clock, up to which the documents are certain; null while live. */
  get asOf() {
    return this.#stopped;
  }

  /** The current time by the daemon's clock, in milliseconds since 1970. */
  now(here = Date.now()) {
    return (this.#stopped ?? here) + this.#ahead;
  }
}

/** Milliseconds before now for which the documents may be out of date. */
function doubtful({ state, source, lag_seconds: lag }) {
  if (source === "stale" || source === "down") {
    return Number.isFinite(lag) ? lag * 1000 : 0;
  }
  return state === "stale" ? SILENCE : 0;
}
