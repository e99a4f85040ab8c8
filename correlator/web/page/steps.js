/** The steps of a job as bars on one time axis, in their order; the bar of a running step grows towards those ahead. */

import { Ahead } from "./ahead.js";
import { axisOf, ticksOf } from "./axis.js";
import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { brief, duration, elapsed, inUtc, moment } from "./times.js";
import { counted, cutNote, shownStatus, stepTitle, text } from "./words.js";

export class Steps extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    const isOther = next.job !== now.job || next.picked !== now.picked;
    return isOther || next.silentSince !== now.silentSince || (!next.job.terminal && next.now !== now.now);
  }

  render({ job, now, silentSince, picked, onPick }) {
    const steps = Object.entries(job.steps ?? {}).map(([id, step]) => ({ id, ...step }));
    steps.sort(inOrder);
    const forecast = job.terminal ? null : (job.forecast ?? null);
    if (steps.length === 0 && forecast === null) {
      return html`<section class="steps"><h2>Steps</h2>
        <p class="soft">${without(job)}</p></section>`;
    }
    const axis = axisOf(job, steps, now, moment, silentSince);
    const from = (at) => ({ left: `${axis.place(at)}%` });
    return html`<section class="steps">
      <h2>Steps <span class="soft">${tally(job.progress, forecast)}</span></h2>
      <div class="axis" aria-hidden="true"><div class="axis-line">
        ${ticksOf(axis).map(
          ({ at, label }) => html`<span key=${label} class="tick" style=${from(at)}>${label}</span>`,
        )}
        ${axis.breaksAt !== null && html`<span class="tick axis-break" style=${from(axis.breaksAt)}>${brief(now - axis.breaksAt)} of silence</span>`}
      </div></div>
      <ol>${steps.map(
        (step) => html`<${Step} key=${step.id} step=${step} axis=${axis} now=${now} over=${job.terminal}
          silentSince=${silentSince} isPicked=${step.id === picked} onPick=${onPick} />`,
      )}${forecast !== null && html`<${Ahead} forecast=${forecast} axis=${axis} now=${now} />`}</ol>
    </section>`;
  }
}

function without(job) {
  if (job.source === "legacy") {
    return "The old failover tracker records no steps.";
  }
  return job.terminal ? "It ended without a step." : "No step yet.";
}

/** Sorts steps by `seq`. A step that is only in the log yet may have none: it is the newest and comes last. */
export function inOrder(a, b) {
  return Number(!a.seq) - Number(!b.seq) || (a.seq ?? 0) - (b.seq ?? 0) || Number(a.id) - Number(b.id);
}

function tally(progress, forecast) {
  const counts = [
    [progress?.steps_failed, "failed"],
    [progress?.steps_skipped, "skipped"],
  ].filter(([count]) => count > 0);
  const { steps_seen: seen = 0, steps_expected: expected = null } = progress ?? {};
  const all = forecast !== null && expected > 0 ? expected : null;
  const none = all === null && seen === 0;
  const steps = none ? "none yet" : `${all === null ? "" : `${seen} of about `}${counted(all ?? seen, "step")}`;
  return [steps, ...counts.map(([count, word]) => `${count} ${word}`)].join(", ");
}

/** A step; a click on its name shows only its lines of the log. */
function Step({ step, axis, now, over, silentSince, isPicked, onPick }) {
  const shown = shownStatus(step.status);
  const started = moment(step.started_at);
  const ended = moment(step.ended_at);
  const running = step.status === "running" && !over;
  return html`<li class="step tone-step-${shown.tone}">
    <span class="step-name">${icon(shown.shape, shown.tone)}
      <button type="button" class="step-pick" aria-pressed=${String(isPicked)} title="Only the log lines of this step"
        onClick=${() => onPick(isPicked ? "" : step.id)}><span class="few-lines">${stepTitle(step)}</span></button></span>
    <span class="step-word soft">${step.status === "running" && over ? "never ended" : shown.word}</span>
    <span class="lane" aria-hidden="true">
      ${
        started !== null &&
        html`<${Span} from=${started} to=${ended ?? axis.reached} tone=${shown.tone} axis=${axis}
        silentSince=${running ? silentSince : null} />`
      }
    </span>
    <span class="step-took" title=${[inUtc(step.started_at), inUtc(step.ended_at)].filter(Boolean).join(" – ")}>
      ${took(started, ended, running, now, step.status)}</span>
    ${text(step.error) !== "" && html`<pre class="step-error">${text(step.error)}${step.error_cut && ` (${cutNote(step.error_cut)})`}</pre>`}
  </li>`;
}

/** A bar. After the last log row its end is uncertain, so that part is drawn differently. */
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
