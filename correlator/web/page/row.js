/** One job in the list: a link with all that a glance wants. Drawn again only when its job, place or second changed. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { jobAddress } from "./route.js";
import { liveliness } from "./silence.js";
import { duration, elapsed, inUtc, moment, shortTime } from "./times.js";
import { counted, deed, shownStatus, subject, text } from "./words.js";

export class Row extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    return (
      next.job !== now.job ||
      next.place !== now.place ||
      next.of !== now.of ||
      next.top !== now.top ||
      (!next.job.terminal && next.now !== now.now)
    );
  }

  render({ job, place, of, top, now, onFocus }) {
    const shown = shownStatus(job.status);
    const { silent } = liveliness(job, now);
    const started = moment(job.started_at);
    const style = { transform: `translateY(${top}px)` };
    return html`<li class="row" aria-setsize=${of} aria-posinset=${place + 1} style=${style}>
      <a class="row-link tone-edge-${shown.tone}" href=${jobAddress(job.job_id)} data-job=${job.job_id}
        onFocus=${onFocus}>
        <span class="row-status">${icon(shown.shape, shown.tone)} <span>${shown.word}</span></span>
        <span class="row-subject"><b>${subject(job)}</b> <span class="soft">${deed(job)[0] ?? ""}</span></span>
        <span class="row-progress">${progress(job, silent)}</span>
        <span class="row-started soft" title=${inUtc(job.started_at)}>${shortTime(started, now) || "not started"}</span>
        <span class="row-elapsed">${lasting(job, started, now)}</span>
      </a>
    </li>`;
  }
}

function progress(job, silent) {
  const percent = job.progress?.percent ?? null;
  const failed = job.progress?.steps_failed ?? 0;
  if (job.status === "failed") {
    return html`<span class="row-error">${text(job.error) || "no reason given"}</span>`;
  }
  if (job.terminal) {
    return failed > 0
      ? html`<span class="mark tone-bad">${icon("alert", "bad")} ${counted(failed, "step")} failed</span>`
      : html`<span class="soft">${counted(job.progress?.steps_done ?? 0, "step")}</span>`;
  }
  return html`<span class="bar" aria-hidden="true">
      <span class="bar-done ${silent === null ? "" : "is-silent"}" style=${{ width: `${percent ?? 0}%` }}></span>
    </span>
    <span class="row-percent">${percent === null ? "–" : `${Math.floor(percent)} %`}</span>
    ${
      silent === null
        ? html`<span class="row-step soft">${text(job.current_step)}</span>`
        : html`<span class="mark tone-warn">${icon("alert", "warn")} ${silent}</span>`
    }`;
}

function lasting(job, started, now) {
  if (started === null) {
    return "";
  }
  const ended = moment(job.ended_at);
  return ended === null ? (job.terminal ? "" : elapsed(now - started)) : duration(ended - started);
}
