/** One job in the list. It is rendered again only when its job, place, second or day has changed. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { Progress, comparison, outlook } from "./outlook.js";
import { bar } from "./percent.js";
import { jobAddress } from "./route.js";
import { liveliness } from "./silence.js";
import { dayOf, duration, elapsed, inUtc, moment, shortTime } from "./times.js";
import { counted, currentStepOf, operations, shownStatus, subject, text } from "./words.js";

const FINE = 0.5;
/** Percent: half a pixel of a bar in the list. */

export class Row extends Component {
  #progress = new Progress();

  shouldComponentUpdate(next) {
    const now = this.props;
    return (
      next.job !== now.job ||
      next.place !== now.place ||
      next.of !== now.of ||
      next.equal !== now.equal ||
      next.begins !== now.begins ||
      next.isSilent !== now.isSilent ||
      next.fleet !== now.fleet ||
      next.top !== now.top ||
      (next.now !== now.now && (!next.job.terminal || dayOf(next.now) !== dayOf(now.now)))
    );
  }

  /**
   * `fleet`: the jobs are of several appliances. `isSilent`: nothing comes from the job's. `begins`: the row is the
   * first one of an appliance in a list that is grouped by them.
   */
  render({ job, place, of, top, now, equal = 0, fleet = false, isSilent = false, begins = false, onFocus }) {
    const shown = shownStatus(job.status);
    const started = moment(job.started_at);
    const progress = this.#progress.at(job, now);
    const style = { transform: `translateY(${top}px)` };
    return html`<li class=${rowClass(begins, isSilent)} aria-setsize=${of} aria-posinset=${place + 1} style=${style}>
      <a class="row-link tone-edge-${shown.tone}" href=${jobAddress(job.job_id, job.instance)} data-job=${job.job_id}
        onFocus=${onFocus}>
        <span class="row-status">${icon(shown.shape, shown.tone)} <span>${shown.word}</span></span>
        <span class="row-subject"><b>${subject(job)}</b> <span class="soft">${
          fleet && html`<span class="row-where">${text(job.instance)} · </span>`
        }<bdi>${operations(job)[0] ?? ""}</bdi>${
          started !== null && dayOf(started) !== dayOf(now) && html`<span class="row-day"> · ${shortTime(started, now)}</span>`
        }</span></span>
        ${fleet && html`<span class="row-appliance">${isSilent && icon("cross", "bad")} ${text(job.instance)}</span>`}
        <span class="row-progress">${job.terminal ? result(job, equal) : underWay(job, now, progress)}</span>
        <span class="row-started soft" title=${inUtc(job.started_at)}>${shortTime(started, now) || "not started"}</span>
        <span class="row-elapsed" title=${comparison(job) || undefined}>${lasting(job, started, now)}</span>
      </a>
    </li>`;
  }
}

function rowClass(begins, isSilent) {
  return ["row", begins && "is-first-of-group", isSilent && "is-silent-row"].filter(Boolean).join(" ");
}

function result(job, equal) {
  const failed = job.progress?.steps_failed ?? 0;
  if (job.status === "failed") {
    return html`<span class="row-error">${text(job.error) || "no reason given"}</span>
      ${equal > 0 && html`<b class="row-equal">+ ${counted(equal, "equal failure")}</b>`}`;
  }
  return failed > 0
    ? html`<span class="mark tone-bad">${icon("alert", "bad")} ${counted(failed, "step")} failed</span>`
    : html`<span class="soft">${counted(job.progress?.steps_done ?? 0, "step")}</span>`;
}

function underWay(job, now, { left, percent }) {
  const { silent } = liveliness(job, now);
  const forecast = outlook(job, now, left);
  const shape = silent !== null ? "is-silent" : left?.state === "overdue" ? "is-overdue" : "";
  return html`<span class="bar" aria-hidden="true">${bar(percent, shape, FINE)}</span>
    <span class="row-percent">${percent === null ? "–" : `${Math.floor(percent)} %`}</span>
    <span class="row-now">
      ${
        silent === null
          ? html`<span class="row-step soft">${currentStepOf(job)}</span>`
          : html`<span class="mark tone-warn">${icon("alert", "warn")} ${silent}</span>`
      }
      ${forecast !== null && html`<${Left} forecast=${forecast} />`}
    </span>`;
}

function Left({ forecast: { lateness, why, brief, source } }) {
  const title = lateness === null ? source : `${lateness.word}: ${why}. ${source}`;
  return html`<span class="row-left" title=${title}>
    ${lateness !== null &&
      html`<b class="tone-${lateness.tone}">${icon(lateness.shape)} ${lateness.word}:</b>${" "}`}
    ${brief}
  </span>`;
}

function lasting(job, started, now) {
  if (started === null) {
    return "";
  }
  const ended = moment(job.ended_at);
  return ended === null ? (job.terminal ? "" : elapsed(now - started)) : duration(ended - started);
}
