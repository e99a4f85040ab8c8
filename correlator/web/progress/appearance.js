/**
 * What `correlator-progress` shows of a job at a moment. Pure.
 *
 * Invariant: text of the daemon becomes text only, never the name of a part.
 */

import { comparison, outlook } from "../page/outlook.js";
import { liveliness } from "../page/silence.js";
import { clockTime } from "../page/times.js";
import { STATUSES, counted, currentStepOf, cutNote, shownState, shownStatus, stepsDone, subject, text } from "../page/words.js";

/** @import { Job, Remaining, Update } from "../client.js" */

/**
 * @typedef {object} Appearance
 * @property {string} kind  "waiting", or a status of a job, "late" or "overdue": the name of a part
 * @property {string} name  of the job, for its progress bar
 * @property {number | null} percent
 * @property {string} value  what a screen says of the bar
 * @property {string} status
 * @property {string} step
 * @property {string} forecast
 * @property {string} notice  why what is shown may be wrong, or that the job is silent
 * @property {string} error  its first line
 * @property {string} details  its other lines
 */

/**
 * @param {Update | null} update  null before the first
 * @param {Job | null} job  of the update, or the last one if the daemon has evicted it
 * @param {{id: string, now: number, asOf: number | null, left: Remaining | null, percent: number | null}} at
 * @returns {Appearance}
 */
export function appearance(update, job, { id, now, asOf, left, percent }) {
  const notice = connectionNotice(update, asOf);
  if (job === null) {
    const status = update?.synced ? "Waiting for the job" : "Connecting";
    const shown = { step: "", forecast: "", notice, error: "", details: "" };
    return { kind: "waiting", name: id, percent: null, value: status, status, ...shown };
  }
  const outcome = outlook(job, now, left);
  const late = outcome?.lateness ? job.forecast?.state : undefined;
  const words = percentWords(job, percent);
  const step = job.terminal ? stepsDone(job) : currentStepOf(job) || stepsDone(job);
  const forecast = outcome === null ? comparison(job) : outcome.words;
  const doubts = [notice, update?.synced && update.job === null && "Last known state", liveliness(job, now).silent];
  return {
    kind: late ?? (STATUSES.includes(job.status) ? job.status : "waiting"),
    name: subject(job),
    percent,
    value: [words, stepsDone(job), currentStepOf(job), forecast].filter(Boolean).join(", "),
    status: statusWords(job, outcome),
    step,
    forecast,
    notice: job.terminal ? "" : doubts.filter(Boolean).join(" · "), // an end is final
    ...errorLines(job),
  };
}

/** @param {Job} job @param {number | null} percent */
function percentWords(job, percent) {
  if (percent === null) return "";
  return `${job.progress?.basis === "history" && !job.terminal ? "about " : ""}${Math.floor(percent)} %`;
}

/** @param {Job} job @param {ReturnType<typeof outlook>} outcome */
function statusWords(job, outcome) {
  const { word } = shownStatus(job.status);
  const failed = job.progress?.steps_failed ?? 0;
  if (job.status === "completed" && failed > 0) return `${word} with ${counted(failed, "failed step")}`;
  return outcome?.lateness ? `${word}, ${outcome.lateness.word.toLowerCase()}: ${outcome.why}` : word;
}

/** @param {Job} job */
function errorLines(job) {
  const [error, ...rest] = text(job.error).trim().split("\n");
  return { error, details: [...rest, cutNote(job.error_cut)].join("\n").trim() };
}

/**
 * "" while the connection is up to date, and during the first attempt.
 * @param {Update | null} update @param {number | null} asOf
 */
function connectionNotice(update, asOf) {
  if (update === null) return "";
  const { state, error } = update.connection;
  if (state === "refused") return `Refused: ${text(error)}`;
  if (state === "live" || state === "paused" || (asOf === null && state === "connecting")) return "";
  const { word } = shownState(state);
  return asOf === null ? `${word}: ${text(error) || "no connection yet"}` : `${word}: as of ${clockTime(asOf)}`;
}
