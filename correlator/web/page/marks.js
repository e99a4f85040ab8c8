/** What the tab says: title and icon tell the state without a look at the page. */

import { iconAddress } from "./icons.js";
import { shownStatus, subject } from "./words.js";

const COLOURS = new Map([
  ["running", "#3a8fd0"],
  ["good", "#009e73"],
  ["bad", "#d55e00"],
  ["warn", "#e69f00"],
  ["quiet", "#8a8f98"],
]);

const NAME = "correlator";

export function markCounts(counts, connection) {
  const failed = counts.get("failed") ?? 0;
  const running = counts.get("running") ?? 0;
  const told = [failed > 0 && `${failed} failed`, running > 0 && `${running} running`].filter(Boolean).join(", ");
  const away = connection.state === "offline" ? "offline – " : "";
  mark(`${away}${told === "" ? NAME : `${told} – ${NAME}`}`, null);
}

export function markJob(job, silent) {
  const { word, shape, tone } = shownStatus(job.status);
  const percent = job.progress?.percent ?? null;
  const running = job.status === "running";
  const state = running && percent !== null ? `${Math.floor(percent)} %` : word;
  const failed = job.status === "completed" && (job.progress?.steps_failed ?? 0) > 0;
  const image = silent !== null ? ["alert", "warn"] : failed ? ["alert", "bad"] : [shape, tone];
  mark(`${silent !== null ? "silent, " : ""}${state} – ${subject(job)} – ${NAME}`, image);
}

export function markWaiting(id) {
  mark(`waiting – ${id} – ${NAME}`, ["ring", "quiet"]);
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
