/**
 * The word, icon and CSS class for each value of the protocol's closed sets.
 *
 * Invariant: untrusted text never becomes a class name; only values found here do. An unknown value is shown as its own
 * text, with a neutral icon.
 */

export const STATUSES = Object.freeze(["failed", "running", "pending", "completed", "cancelled"]);
/** Statuses of jobs in the order of the list. */

const SHOWN = new Map([
  ["pending", { word: "Pending", shape: "ring", tone: "quiet" }],
  ["running", { word: "Running", shape: "play", tone: "running" }],
  ["completed", { word: "Completed", shape: "check", tone: "good" }],
  ["failed", { word: "Failed", shape: "cross", tone: "bad" }],
  ["cancelled", { word: "Cancelled", shape: "bar", tone: "quiet" }],
  ["skipped", { word: "Skipped", shape: "skip", tone: "skipped" }],
]);

/** The word, icon and tone of a status of a job or step. */
export function shownStatus(status) {
  return SHOWN.get(status) ?? { word: text(status) || "Unknown", shape: "ring", tone: "quiet" };
}

export const LATENESS = Object.freeze(["late", "overdue"]);
/** States of a forecast that can be filtered. */

const LATE = new Map([
  ["late", { word: "Late", shape: "clock", tone: "warn" }],
  ["overdue", { word: "Overdue", shape: "alert", tone: "bad" }],
]);

/** The word, icon and tone of a late or overdue job; null for any other state of a forecast. */
export function shownLateness(state) {
  return LATE.get(state) ?? null;
}

export const LEVELS = Object.freeze(["DEBUG", "INFO", "WARN", "ERROR"]);

const LEVEL_TONES = new Map([
  ["DEBUG", "quiet"],
  ["INFO", "plain"],
  ["WARN", "warn"],
  ["ERROR", "bad"],
]);

export function levelTone(level) {
  return LEVEL_TONES.get(level) ?? "plain";
}

const STATES = new Map([
  ["connecting", { word: "Connecting", tone: "quiet", shape: "ring" }],
  ["live", { word: "Live", tone: "good", shape: "dot" }],
  ["stale", { word: "Stale", tone: "warn", shape: "alert" }],
  ["offline", { word: "Offline", tone: "bad", shape: "cross" }],
  ["paused", { word: "Paused", tone: "quiet", shape: "pause" }],
  ["refused", { word: "Refused", tone: "bad", shape: "bar" }],
]);

export function shownState(state) {
  return STATES.get(state) ?? { word: "Unknown", tone: "quiet", shape: "ring" };
}

/** Converts any value of a document to text, as it is. */
export function raw(value) {
  if (value === null || value === undefined) {
    return "";
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it is about
const UNSEEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
/** Characters that control a device, hide, or reorder the text beside them. Not line feed and tab. */

/** Converts any value of a document to text to show: what nobody would see in it is escaped, as in a terminal. */
export function text(value) {
  return raw(value).replaceAll("\r\n", "\n").replace(UNSEEN, escaped);
}

function escaped(character) {
  const code = character.charCodeAt(0);
  return code < 0x80 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

const BLANK = /^[\s\u00ad\u115f\u1160\u180e\u200c\u200d\u2800\u3164\uffa0]+$/;

/** A name, as text to show; "(blank)" if nobody would see it. */
export function named(value) {
  const name = text(value);
  return BLANK.test(name) ? "(blank)" : name;
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** A shown text for a place without elements, as a title: it does not reorder the words beside it. */
export function isolated(shown) {
  return RIGHT_TO_LEFT.test(shown) ? `\u2068${shown}\u2069` : shown;
}

const ORIGINS = new Map([
  ["joblog", "JobLog"],
  ["legacy", "the old failover tracker: it has no steps and no log lines"],
]);

/** From what a job is known, in words. */
export function origin(job) {
  return ORIGINS.get(job.source) ?? text(job.source);
}

const BASES = new Map([
  ["reported", "what the job reports"],
  ["history", "earlier runs"],
  ["steps", "steps done"],
  ["legacy", "the status in the old tracker"],
]);

/** What the percent of a job rests on, in words. */
export function basisOfPercent(job) {
  return BASES.get(job.progress?.basis) ?? text(job.progress?.basis);
}

const SUBJECTS = ["vm_name", "vm_name_or_id", "source_vm_name", "group_name", "schedule_name"];

/** The title of a job: the VM's name, else the first available ID or name. */
export function subject(job) {
  for (const key of SUBJECTS) {
    const name = named(job.metadata?.[key]);
    if (name !== "") {
      return name;
    }
  }
  return named(job.external_ids?.[0]) || operationOf(job) || named(job.job_id);
}

/** The VM of a job, as `GET /api/v1/entities/{name}` finds it, else its context; "" for neither. */
export function entityOf(job) {
  return vmOf(job) || raw(job.context_id);
}

export function vmOf(job) {
  return ["vm_name", "vm_name_or_id"].map((key) => job.metadata?.[key]).find((name) => typeof name === "string") ?? "";
}

/** What people call the operation of a job. */
export function operationOf(job) {
  return named(job.title) || named(job.operation);
}

/** What people call the running step of a job. */
export function currentStepOf(job) {
  return named(job.current_step_title) || named(job.current_step);
}

/** What people call a step, also one that is still to come. */
export function stepTitle(step) {
  return named(step?.title) || named(step?.name);
}

/** The operation and the type of a job, without a repetition of `subject`. */
export function operations(job) {
  const name = subject(job);
  return [operationOf(job), job.job_type].map(text).filter((word) => word !== "" && word !== name);
}

/** Formats bytes: "512 bytes", "18 MB". */
function size(count) {
  const [unit, one] = [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ].find(([, least]) => count >= least) ?? ["bytes", 1];
  return `${Number((count / one).toPrecision(3))} ${unit}`;
}

/** A note with the full size of a text that was cut; "" if it is complete. */
export function cutNote(count) {
  return typeof count === "number" ? `cut: ${size(count)} in full` : "";
}

/** "1 step", "2 steps". */
export function counted(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

/** "3 of about 8 steps done"; "" without a step. */
export function stepsDone({ progress, terminal }) {
  const { steps_done: done = 0, steps_seen: seen = 0, steps_expected: expected = null } = progress ?? {};
  if (expected > 0 && !terminal) {
    return `${done} of about ${counted(expected, "step")} done`;
  }
  return seen === 0 ? "" : `${done} of ${counted(seen, "step")} done${terminal ? "" : " so far"}`;
}
