/**
 * The closed sets of the protocol, and the word, shape and class each is shown with.
 *
 * Always: a text that came from outside is looked up here and never becomes a class name itself; what is not in a set
 * is shown by its own word, in the plainest form.
 */

export const STATUSES = Object.freeze(["failed", "running", "pending", "completed", "cancelled"]);
/** Of jobs, in the order in which an operator wants them. */

const SHOWN = new Map([
  ["pending", { word: "Pending", shape: "ring", tone: "quiet" }],
  ["running", { word: "Running", shape: "play", tone: "running" }],
  ["completed", { word: "Completed", shape: "check", tone: "good" }],
  ["failed", { word: "Failed", shape: "cross", tone: "bad" }],
  ["cancelled", { word: "Cancelled", shape: "bar", tone: "quiet" }],
  ["skipped", { word: "Skipped", shape: "skip", tone: "skipped" }],
]);

/** How a status of a job or step is shown. */
export function shownStatus(status) {
  return SHOWN.get(status) ?? { word: text(status) || "Unknown", shape: "ring", tone: "quiet" };
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

/** Any value of a document as the text that a reader sees. */
export function text(value) {
  if (value === null || value === undefined) {
    return "";
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const SUBJECTS = ["vm_name", "vm_name_or_id", "source_vm_name", "group_name", "schedule_name"];

/** What a job is about: the VM's name, else what names it best. */
export function subject(job) {
  for (const key of SUBJECTS) {
    const name = text(job.metadata?.[key]);
    if (name !== "") {
      return name;
    }
  }
  return text(job.external_ids?.[0]) || text(job.operation) || text(job.job_id);
}

/** What is done to it, without saying again what `subject` says. */
export function deed(job) {
  const name = subject(job);
  return [job.operation, job.job_type].map(text).filter((word) => word !== "" && word !== name);
}

/** "1 step", "2 steps". */
export function counted(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}
