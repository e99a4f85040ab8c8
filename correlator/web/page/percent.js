/** The bar of one job with its percent, its steps, and when it will probably end or how long it took. */

import { dotted, html } from "./html.js";
import { comparison } from "./outlook.js";
import { currentStepOf, stepsDone } from "./words.js";

const FINE = 0.1;
/** Percent. A bar is drawn again once it has moved so far, so that one that hardly moves costs nothing. */

/** `shape`: classes of the bar that is done. It is moved rather than resized, which needs no layout. */
export function bar(percent, shape, fine) {
  const left = Math.round((percent ?? 0) / fine) * fine - 100;
  return html`<span class="bar-done ${shape}" style=${{ transform: `translateX(${left.toFixed(1)}%)` }}></span>`;
}

export function Percent({ job, tone, silent, percent, forecast }) {
  const about = job.progress?.basis === "history" && !job.terminal ? "about " : "";
  const words = percent === null ? "unknown" : `${about}${Math.floor(percent)} %`;
  const more = [stepsDone(job), currentStepOf(job)].filter(Boolean);
  const end = forecast === null ? [comparison(job)].filter(Boolean) : [forecast.words, forecast.source];
  const overdue = silent === null && job.forecast?.state === "overdue";
  return html`<div class="percent">
    <div class="bar bar-large" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"
      aria-valuenow=${percent === null ? undefined : Math.floor(percent)}
      aria-valuetext=${[words, ...more, ...end].join(", ")}>
      ${bar(percent, `tone-bar-${tone} ${silent === null ? "" : "is-silent"} ${overdue ? "is-overdue" : ""}`, FINE)}
    </div>
    <p class="percent-words"><b>${words}</b> <span class="soft">${dotted(more)}</span></p>
    ${forecast !== null &&
      html`<p class="outlook"><b>${forecast.words}</b> <span class="soft">${forecast.source}</span></p>`}
    ${forecast === null && end.length > 0 && html`<p class="outlook soft">${end[0]}</p>`}
  </div>`;
}
