/** The steps of a job as bars on one time axis, in their order; the bar of a running step grows towards those ahead. */

import { Ahead } from "./ahead.js";
import { axisOf, ticksOf } from "./axis.js";
import { Component, atOnce, createRef, html } from "./html.js";
import { icon } from "./icons.js";
import { Layout } from "./log_layout.js";
import { brief, duration, elapsed, inUtc, moment } from "./times.js";
import { counted, cutNote, shownStatus, stepTitle, text } from "./words.js";

export class Steps extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    const isOther = next.job !== now.job || next.picked !== now.picked;
    return isOther || next.silentSince !== now.silentSince || (!next.job.terminal && next.now !== now.now);
  }

  render({ job, now, silentSince, picked, onPick }) {
    const steps = stepsOf(job);
    const forecast = job.terminal ? null : (job.forecast ?? null);
    if (steps.length === 0 && forecast === null) {
      return html`<section class="steps"><h2>Steps</h2>
        <p class="soft">${without(job)}</p></section>`;
    }
    const axis = axisOf(job, steps, now, moment, silentSince);
    const from = (at) => ({ left: `${axis.place(at)}%` });
    return html`<section class="steps">
      <h2>Steps <span class="soft">${tally(job.progress, forecast)}</span></h2>
      ${job.steps_complete === false && html`<p class="soft">${UNREAD}</p>`}
      <div class="axis" aria-hidden="true"><div class="axis-line">
        ${ticksOf(axis).map(
          ({ at, label }) => html`<span key=${label} class="tick" style=${from(at)}>${label}</span>`,
        )}
        ${axis.breaksAt !== null && html`<span class="tick axis-break" style=${from(axis.breaksAt)}>${brief(now - axis.breaksAt)} of silence</span>`}
      </div></div>
      <${StepList} steps=${steps} axis=${axis} now=${now} over=${job.terminal} silentSince=${silentSince} picked=${picked}
        onPick=${onPick} ahead=${forecast !== null && html`<${Ahead} forecast=${forecast} axis=${axis} now=${now} />`} />
    </section>`;
  }
}

const WHOLE = 200;
/** Up to this number of steps are all in the document, so that the browser's search finds them. */
const MOST_PRINTED = 1000;
const ESTIMATE = 34;
/** Pixels of a step that has not been drawn. */
const STRIDE = 400;
/** Pixels that the page scrolls before other steps are drawn. */
const BEYOND = 800;
/** Pixels outside the window in which steps are drawn. */

/** The steps. Of thousands, only those in and near the window are in the document; what is in sight stays there. */
class StepList extends Component {
  #list = createRef();
  #layout = new Layout(ESTIMATE);

  constructor(props) {
    super(props);
    this.state = { stride: 0, printed: false };
  }

  componentDidMount() {
    addEventListener("scroll", this.#see, { passive: true });
    addEventListener("resize", this.#resized);
    addEventListener("beforeprint", this.#print);
    addEventListener("afterprint", this.#unprint);
    this.componentDidUpdate();
  }

  componentWillUnmount() {
    removeEventListener("scroll", this.#see);
    removeEventListener("resize", this.#resized);
    removeEventListener("beforeprint", this.#print);
    removeEventListener("afterprint", this.#unprint);
  }

  /** Measures the steps that are drawn. One above the window that is higher than assumed does not move the others. */
  componentDidUpdate() {
    const { steps } = this.props;
    if (steps.length <= WHOLE || this.state.printed) {
      return;
    }
    const above = this.#above;
    const first = steps[this.#layout.at(above)].id;
    const before = this.#layout.top(first);
    if (this.#measure()) {
      this.#layout.arrange(steps.map(idOf));
      if (above > 0) {
        scrollBy({ top: this.#layout.top(first) - before });
      }
      this.setState({});
    }
    this.#see();
  }

  /** Pixels of the list that are above the window. */
  get #above() {
    return -this.#list.current.getBoundingClientRect().top;
  }

  #measure() {
    let changed = false;
    for (const item of this.#list.current.querySelectorAll("[data-step]")) {
      changed = this.#layout.measured(item.dataset.step, item.getBoundingClientRect().height) || changed;
    }
    return changed;
  }

  #see = () => {
    const stride = Math.floor(this.#above / STRIDE);
    if (stride !== this.state.stride) {
      this.setState({ stride });
    }
  };

  #resized = () => {
    this.#layout.clear();
    this.setState({});
  };

  #print = () => atOnce(() => this.setState({ printed: true }));
  #unprint = () => this.setState({ printed: false });

  #between(steps) {
    if (steps.length <= WHOLE || this.state.printed) {
      return { first: 0, end: MOST_PRINTED, above: 0, below: 0 };
    }
    this.#layout.arrange(steps.map(idOf));
    const top = this.state.stride * STRIDE;
    return this.#layout.between(top - BEYOND, top + STRIDE + innerHeight + BEYOND);
  }

  render({ steps, axis, now, over, silentSince, picked, onPick, ahead }) {
    const { first, end, above, below } = this.#between(steps);
    return html`<ol ref=${this.#list} class="step-list">
      ${above > 0 && html`<li key="above" aria-hidden="true" style=${{ height: `${above}px` }}></li>`}
      ${steps.slice(first, end).map(
        (step, place) => html`<${Step} key=${step.id} step=${step} place=${first + place + 1} of=${steps.length} axis=${axis}
          now=${now} over=${over} silentSince=${silentSince} isPicked=${step.id === picked} onPick=${onPick} />`,
      )}
      ${below > 0 && html`<li key="below" aria-hidden="true" style=${{ height: `${below}px` }}></li>`}
      ${ahead}</ol>`;
  }
}

function idOf({ id }) {
  return id;
}

const UNREAD = "The table of steps cannot be read now: steps that the log does not name are missing.";

function without(job) {
  if (job.source === "legacy") {
    return "The old failover tracker records no steps.";
  }
  if (job.steps_complete === false) {
    return UNREAD;
  }
  return job.terminal ? "It ended without a step." : "No step yet.";
}

const sorted = new WeakMap();

/** The steps of a document in their order, with their IDs. Documents are immutable, so it is done once for each. */
export function stepsOf(job) {
  let steps = sorted.get(job);
  if (steps === undefined) {
    steps = Object.entries(job.steps ?? {}).map(([id, step]) => ({ id, ...step }));
    steps.sort(inOrder);
    sorted.set(job, steps);
  }
  return steps;
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
function Step({ step, place, of, axis, now, over, silentSince, isPicked, onPick }) {
  const shown = shownStatus(step.status);
  const started = moment(step.started_at);
  const ended = moment(step.ended_at);
  const running = step.status === "running" && !over;
  return html`<li class="step tone-step-${shown.tone}" data-step=${step.id} aria-posinset=${place} aria-setsize=${of}>
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
