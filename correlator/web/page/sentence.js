/** The sentence that says why a job failed: the page, the element and notifications show it. Pure. */

import { stepsOf } from "./step_order.js";
import { named, text } from "./words.js";

/**
 * `[where, what]` of a failed job, in words of its rows alone; null for another one, and while its tables do not say yet
 * that it has failed. `where` may be "". The rule is that of `correlator.failures.sentence` (tests/data/sentences.json).
 */
export function sentence(job) {
  const failure = job?.failure ?? null;
  if (failure === null) {
    return null;
  }
  const what = `${withoutDots(text(failure.text))}.`;
  switch (failure.certainty) {
    case "stated":
      return [`Step ${named(failure.step)}:`, what];
    case "inferred":
      return [`The last step that failed, ${named(failure.step)}, says:`, what];
    case "apart": {
      const last = named(stepsOf(job).at(-1)?.name);
      return ["The job reports:", last === "" ? what : `${what} The last step was ${last}.`];
    }
    default:
      return ["", "No reason was logged."];
  }
}

/** True if the sentence of a failed job has its whole error, which then need not be shown besides. */
export function saysAll(job) {
  return withoutDots(text(job.error).trim()) === withoutDots(text(job.failure?.text));
}

function withoutDots(words) {
  return words.replace(/\.+$/, "");
}

/** Why a job failed, in one line: its sentence, or the first line of its error. "" if there is neither. */
export function errorLine(job) {
  const [where, what] = sentence(job) ?? ["", ""];
  return where === "" ? text(job.error).trim().split("\n")[0] || what : `${where} ${what}`;
}
