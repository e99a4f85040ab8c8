/** The steps of a job as bars on one time axis, in their order; bars of what runs grow with the clock. */

import { axisOf, ticksOf } from "./axis.js";
import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { duration, elapsed, inUtc, moment } from "./times.js";
import { counted, shownStatus, text } from "./words.js";

export class Steps extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    return next.job !== now.job || next.silentSince !== now.silentSince || (!next.job.terminal && next.now !== now.now);
  }

  render({ job, now, silentSince }) {
    const steps = Object.entries(job.steps ?? {}).map(([id, step]) => ({ id, ...step }));
    steps.sort((a, b) => (a.seq ?? 0) - (b.seq ?? 0) || Number(a.id) - Number(b.id));
    if (steps.length === 0) {
      return html`<section class="steps"><h2>Steps</h2>
        <p class="soft">${job.terminal ? "It ended without a step." : "No step yet."}</p></section>`;
    }
    const axis = axisOf(job, steps, now, moment);
    const from = (at) => ({ left: `${axis.place(at)}%` });
    return html`<section class="steps">
      <h2>Steps <span class="soft">${tally(job.progress)}</span></h2>
      <div class="axis" aria-hidden="true"><div class="axis-line">
        ${ticksOf(axis).map(
          ({ at, label }) => html`<span key=${label} class="tick" style=${from(at)}>${label}</span>`,
        )}
      </div></div>
      <ol>${steps.map(
        (step) => html`<${Step} key=${step.id} step=${step} axis=${axis} now=${now} over=${job.terminal}
          silentSince=${silentSince} />`,
      )}</ol>
    </section>`;
  }
}

function tally(progress) {
  const counts = [
    [progress?.steps_failed, "failed"],
    [progress?.steps_skipped, "skipped"],
  ].filter(([count]) => count > 0);
  return [counted(progress?.steps_seen ?? 0, "step"), ...counts.map(([count, word]) => `${count} ${word}`)].join(", ");
}

function Step({ step, axis, now, over, silentSince }) {
  const shown = shownStatus(step.status);
  const started = moment(step.started_at);
  const ended = moment(step.ended_at);
  const running = step.status === "running" && !over;
  return html`<li class="step tone-step-${shown.tone}">
    <span class="step-name">${icon(shown.shape, shown.tone)} <span>${text(step.name)}</span></span>
    <span class="step-word soft">${step.status === "running" && over ? "never ended" : shown.word}</span>
    <span class="lane" aria-hidden="true">
      ${
        started !== null &&
        html`<${Span} from=${started} to=${ended ?? axis.to} tone=${shown.tone} axis=${axis}
        silentSince=${running ? silentSince : null} />`
      }
    </span>
    <span class="step-took" title=${[inUtc(step.started_at), inUtc(step.ended_at)].filter(Boolean).join(" – ")}>
      ${took(started, ended, running, now, step.status)}</span>
    ${text(step.error) !== "" && html`<pre class="step-error">${text(step.error)}</pre>`}
  </li>`;
}

/** A bar; from the last sign of life on it is drawn as what it is, a guess. */
function Span({ from, to, tone, axis, silentSince }) {
  const between = (start, end) => ({ left: `${axis.place(start)}%`, width: `${axis.place(end) - axis.place(start)}%` });
  const known = silentSince === null ? to : Math.min(Math.max(silentSince, from), to);
  return html`<span class="span tone-bar-${tone}" style=${between(from, known)}></span>
    ${known < to && html`<span class="span is-silent" style=${between(known, to)}></span>`}`;
}

function took(started, ended, running, now, status) {
  if (started === null || status === "skipped") {
    return "";
  }
  if (ended !== null) {
    return duration(ended - started);
  }
  return running ? elapsed(now - started) : "";
}
