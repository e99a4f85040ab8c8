/** Title and icon of the browser tab, which show the state of the jobs. */

import { iconAddress } from "./icons.js";
import { isolated, named, shownLateness, shownStatus, subject } from "./words.js";

const COLOURS = new Map([
  ["running", "#3a8fd0"],
  ["good", "#009e73"],
  ["bad", "#d55e00"],
  ["warn", "#e69f00"],
  ["quiet", "#8a8f98"],
]);

const NAME = "correlator";

/** Failed jobs that are marked as seen are not counted. */
export function markCounts({ counts, seen }, connection) {
  const failed = (counts.get("failed") ?? 0) - seen;
  const running = counts.get("running") ?? 0;
  const summary = [failed > 0 && `${failed} failed`, running > 0 && `${running} running`].filter(Boolean).join(", ");
  const away = connection.state === "offline" ? "offline – " : "";
  mark(`${away}${summary === "" ? NAME : `${summary} – ${NAME}`}`, null);
}

/** `percent`: as the page shows it. */
export function markJob(job, silent, percent) {
  const { word, shape, tone } = shownStatus(job.status);
  const running = job.status === "running";
  const state = running && percent !== null ? `${Math.floor(percent)} %` : word;
  const failed = job.status === "completed" && (job.progress?.steps_failed ?? 0) > 0;
  const late = job.terminal ? null : shownLateness(job.forecast?.state);
  const mixed = failed ? ["alert", "bad"] : [shape, tone];
  const image = silent !== null ? ["alert", "warn"] : late !== null ? [late.shape, late.tone] : mixed;
  const doubt = silent !== null ? "silent, " : late !== null ? `${late.word.toLowerCase()}, ` : "";
  mark(`${doubt}${state} – ${titled(subject(job))} – ${NAME}`, image);
}

export function markEntity(name) {
  mark(`${titled(named(name))} – ${NAME}`, null);
}

export function markWaiting(id) {
  mark(`waiting – ${titled(named(id))} – ${NAME}`, ["ring", "quiet"]);
}

const MOST_SHOWN = 200;
/** Characters of a name in the title. */

function titled(name) {
  return isolated(name.slice(0, MOST_SHOWN));
}

let marked = "";

function mark(title, image) {
  if (document.title !== title) {
    document.title = title;
  }
  const link = document.querySelector("link[rel=icon]");
  const address = image === null ? "favicon.svg" : iconAddress(image[0], COLOURS.get(image[1]) ?? COLOURS.get("quiet"));
  if (link !== null && marked !== address) {
    marked = address;
    link.href = address;
  }
}
