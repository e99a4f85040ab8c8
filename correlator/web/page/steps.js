/** The steps of a job as bars on one time axis, in their order; the bar of a running step grows towards those ahead. */

import { LongText } from "./failure.js";
import { Component, atOnce, createRef, html, icon } from "./html.js";
import { Layout } from "./layout.js";
import { stepsOf } from "./step_order.js";
import { about, brief, duration, elapsed, endTime, inUtc, moment } from "./times.js";
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
    if (steps.length === 0 && !(forecast?.steps_ahead.length > 0)) {
      return job.steps_complete === false && html`<section class="steps"><h2>Steps</h2><p class="soft">${UNREAD}</p></section>`;
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
    const first = this.#layout.at(above);
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

function tally(progress, forecast) {
  const counts = [
    [progress?.steps_failed, "failed"],
    [progress?.steps_skipped, "skipped"],
  ].filter(([count]) => count > 0);
  const { steps_seen: seen = 0, steps_expected: expected = null } = progress ?? {};
  const all = forecast !== null && expected > 0 ? expected : null;
  const none = all === null && seen === 0;
  const steps = none ? "" : `${all === null ? "" : `${seen} of about `}${counted(all ?? seen, "step")}`;
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
    ${text(step.error) !== "" && html`<div class="step-error"><${LongText} of=${text(step.error)} note=${cutNote(step.error_cut)} /></div>`}
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

// -- A time axis: the moments that get a tick, and the position of a moment on it. Pure.

const STRIDES = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
].map((seconds) => seconds * 1000);
const MOST_LABELS = 5;

const MOST_AHEAD = 2;
/** The longest axis, as a multiple of the time from the start to p50: p90 may be far away. */

const BROKEN = 75;
/** Percent of an axis before its break. */

/**
 * From the first start to the end, or to now; at least one second, to avoid a division by zero. With a forecast
 * the axis goes on to its p90; `reached` is where the part that has happened ends. If a running job has been silent, since
 * `silentSince`, for longer than all before, the axis breaks there (`breaksAt`): the steps keep their width.
 */
export function axisOf(job, steps, now, timed, silentSince = null) {
  const span = spanOf(steps, timed);
  const begin = Math.min(timed(job.started_at) ?? Number.POSITIVE_INFINITY, span.from);
  const from = begin === Number.POSITIVE_INFINITY ? now : begin;
  const reached = Math.max(from + 1000, timed(job.ended_at) ?? 0, span.to, job.terminal ? 0 : now);
  if (!job.terminal && silentSince !== null && silentSince > from && reached - silentSince > silentSince - from) {
    return broken(from, silentSince, reached);
  }
  const [half, most] = [job.forecast?.ends_at.p50, job.forecast?.ends_at.p90].map((stamp) => timed(stamp) ?? reached);
  const to = Math.max(reached, Math.min(most, from + MOST_AHEAD * (Math.max(reached, half) - from)));
  return { from, reached, to, breaksAt: null, place: (at) => (100 * Math.min(Math.max(at - from, 0), to - from)) / (to - from) };
}

const spans = new WeakMap();

/** The first start and the last end of steps. They are computed once for each list: thousands of times cost too much. */
function spanOf(steps, timed) {
  let span = spans.get(steps);
  if (span === undefined) {
    span = { from: Number.POSITIVE_INFINITY, to: Number.NEGATIVE_INFINITY };
    for (const { started_at: start, ended_at: end } of steps) {
      span.from = Math.min(span.from, timed(start) ?? Number.POSITIVE_INFINITY);
      span.to = Math.max(span.to, timed(end) ?? Number.NEGATIVE_INFINITY);
    }
    spans.set(steps, span);
  }
  return span;
}

function broken(from, breaksAt, reached) {
  const share = (at, begin, end) => Math.min(1, Math.max(0, (at - begin) / (end - begin)));
  const place = (at) => BROKEN * share(at, from, breaksAt) + (100 - BROKEN) * share(at, breaksAt, reached);
  return { from, reached, to: reached, breaksAt, place };
}

const CROWDED = 0.93;
const CROWDED_BY_BREAK = 0.82;
/** Share of the axis, or of its part before a break. A label further right would extend beyond that. */

/** The ticks as `[{at, label}]`, at most six; none after a break. */
export function ticksOf({ from, to, breaksAt }) {
  const span = (breaksAt ?? to) - from;
  const stride =
    STRIDES.find((each) => span / each <= MOST_LABELS) ?? Math.ceil(span / MOST_LABELS / STRIDES.at(-1)) * STRIDES.at(-1);
  const ticks = [];
  const last = span * (breaksAt === null ? CROWDED : CROWDED_BY_BREAK);
  for (let after = 0; after <= last; after += stride) {
    ticks.push({ at: from + after, label: label(after / 1000) });
  }
  return ticks;
}

function label(seconds) {
  if (seconds < 60) {
    return seconds === 0 ? "0" : `${seconds} s`;
  }
  if (seconds < 3600) {
    return seconds % 60 === 0
      ? `${seconds / 60} min`
      : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
  if (seconds < 86_400) {
    const minutes = (seconds / 60) % 60;
    return minutes === 0 ? `${seconds / 3600} h` : `${Math.floor(seconds / 3600)} h ${minutes}`;
  }
  return `${+(seconds / 86_400).toFixed(1)} d`;
}

// -- The steps that a running job probably still has, and its end, below its steps and on their time axis.

/**
 * The steps ahead as `[{name, share, typical, from, to}]`; times in milliseconds. Pure.
 *
 * They end where the job ends in half of all cases. Before the first one, the running step has time to end; if there is
 * too little time for all of them, they are drawn shorter. A step counts with its share of the earlier runs.
 */
export function placed(forecast, now) {
  const room = Math.max(0, (moment(forecast.ends_at.p50) ?? now) - now);
  const steps = forecast.steps_ahead.map(({ name, title, share, typical_seconds: seconds }) => ({
    name: stepTitle({ name, title }),
    share,
    typical: seconds * 1000,
  }));
  const needed = steps.reduce((sum, { share, typical }) => sum + share * typical, 0);
  const scale = needed > room ? room / needed : 1;
  let at = now + room - needed * scale;
  return steps.map((step) => {
    const from = at;
    at += step.share * step.typical * scale;
    return { ...step, from, to: from + step.typical * scale };
  });
}

/** Their rows, and that of the end, which of an overdue job is not known. `axis`: of the steps that the job has had. */
function Ahead({ forecast, axis, now }) {
  const between = (from, to) => ({ left: `${axis.place(from)}%`, width: `${axis.place(to) - axis.place(from)}%` });
  const ends = [forecast.ends_at.p50, forecast.ends_at.p90].map((stamp) => Math.max(now, moment(stamp) ?? now));
  const [half, most] = ends.map((at) => endTime(at, now));
  const rests = `Of ${counted(forecast.runs, "earlier run")}, half ended by ${half}, 9 of 10 by ${most}.`;
  return html`${placed(forecast, now).map(
    ({ name, share, typical, from, to }) => html`<li class="step is-ahead">
      <span class="step-name soft">${icon("ahead", "quiet")} <span>${name}</span></span>
      <span class="step-word soft" title="Share of earlier runs that had this step">${likely(share)}</span>
      <span class="lane" aria-hidden="true">
        <span class="span span-ahead" style=${{ ...between(from, to), opacity: 0.35 + 0.65 * share }}></span>
      </span>
      <span class="step-took soft">${typical < 1000 ? "under 1 s" : about(typical)}</span>
    </li>`,
  )}
  ${forecast.state !== "overdue" && html`<li class="step is-ahead is-end">
    <span class="step-name soft">${icon("ahead", "quiet")} <span>Probable end</span></span>
    <span class="step-word soft" title=${rests}>${half}</span>
    <span class="lane" aria-hidden="true">
      <span class="span span-end ${ends[1] > axis.to ? "is-open" : ""}" style=${between(...ends)}></span>
    </span>
    <span class="step-took soft" title=${rests}>${half === most ? "" : `to ${most}`}</span>
  </li>`}`;
}

/** Never 100 %: what all earlier runs did is not certain. */
function likely(share) {
  return `${Math.min(99, Math.max(1, Math.round(100 * share)))} % likely`;
}
