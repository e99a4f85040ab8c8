/** The page of one VM or context: its jobs over time, how each ended, how long it took, and the trend. */

import { History, PAGE } from "./history.js";
import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { markEntity } from "./marks.js";
import { HERE } from "./place.js";
import { entityAddress, jobAddress } from "./route.js";
import { duration, elapsed, inUtc, moment, shortTime } from "./times.js";
import { trends } from "./trend.js";
import { counted, named, operationOf, shownStatus, text } from "./words.js";

const IN_STRIP = 100;
/** Jobs in the strip of outcomes: the newest. */
const LEAST = 12;
/** Percent: the height of the bar of the shortest duration. */

export class EntityPage extends Component {
  #history = new History(this.props.name);

  componentDidMount() {
    const { name, session } = this.props;
    markEntity(name);
    this.#history.follow(session.list(this.#onUpdate).jobs, null);
    this.#load();
  }

  componentWillUnmount() {
    this.#history.close();
    this.props.session.unlist(this.#onUpdate);
  }

  #onUpdate = (update) => {
    this.props.session.clock.documentsChanged(update.changed);
    if (this.#history.follow(update.jobs, update.changed)) {
      this.setState({});
    }
  };

  #load = () => {
    this.#history.load(this.props.session, () => this.setState({}));
    this.setState({});
  };

  render({ name, instance, now }) {
    const history = this.#history;
    const { jobs } = history;
    const contexts = [...history.contexts].filter((context) => context !== name);
    return html`<article class="entity">
      <p><a class="back" href="#/">${icon("back")} All jobs</a></p>
      <h1 tabindex="-1">${named(name)}</h1>
      <p class="soft">${kindWord(history.kind)}${instance !== "" && ` on ${instance}`}${jobs.length > 0 && ` · ${counted(jobs.length, "job")} loaded`}</p>
      ${instance !== "" && html`<p><a href=${entityAddress(name)}><span>${named(name)}</span> on all appliances</a></p>`}
      ${
        contexts.length > 0 &&
        html`<p>Contexts: ${contexts.map((context) => html`<a key=${context} href=${entityAddress(context, instance)}>${named(context)}</a>${" "}`)}</p>`
      }
      ${
        jobs.length > 0 &&
        html`<${Strip} jobs=${jobs.slice(0, IN_STRIP)} now=${now} />
        <${Trends} jobs=${jobs} />
        <${Runs} jobs=${jobs} now=${now} />`
      }
      <${Rest} history=${history} empty=${jobs.length === 0} now=${now} onMore=${this.#load} />
    </article>`;
  }
}

function kindWord(kind) {
  return kind === null ? "Searching" : kind === "context" ? "Context" : "Virtual machine";
}

/** Milliseconds that a job took, or has taken so far; null without a start. */
function took(job, now) {
  const [started, ended] = [moment(job.started_at), moment(job.ended_at)];
  return started === null || (job.terminal && ended === null) ? null : Math.max(0, (ended ?? now) - started);
}

/** One bar for each job, the newest at the right: its height is the duration. The table below has the same as text. */
function Strip({ jobs, now }) {
  const longest = new Map();
  for (const job of jobs) {
    longest.set(job.operation, Math.max(longest.get(job.operation) ?? 0, took(job, now) ?? 0));
  }
  const bar = (job) => {
    const shown = shownStatus(job.status);
    const most = longest.get(job.operation);
    const share = most > 0 ? (took(job, now) ?? 0) / most : 0;
    const words = [shortTime(moment(job.started_at), now), operationOf(job), shown.word, lasting(job, now)];
    return html`<span key=${job.job_id} class="strip-job" title=${words.filter(Boolean).join(" · ")}>
      <span class="strip-bar tone-bar-${shown.tone}" style=${{ height: `${LEAST + (100 - LEAST) * share}%` }}></span>
      ${icon(shown.shape, shown.tone)}
    </span>`;
  };
  return html`<section class="panel strip-panel" aria-hidden="true"><h2>Outcomes and durations
    <span class="soft">the newest at the right; each bar beside the longest of its operation</span></h2>
    <div class="strip">${[...jobs].reverse().map(bar)}</div></section>`;
}

function Trends({ jobs }) {
  return html`<section class="panel"><h2>By operation</h2><ul class="trends">
    ${trends(jobs).map(
      (trend) => html`<li key=${`${trend.job_type} ${trend.operation}`}><b>${named(trend.operation) || "No operation"}</b>
      <span>${trend.completed} of ${counted(trend.runs, "run")} completed${trend.failed > 0 && `, ${trend.failed} failed`}</span>
      <span>${change(trend)}</span></li>`,
    )}
  </ul></section>`;
}

function change({ newest_seconds: newest, typical_seconds: typical, ratio }) {
  if (newest === null) {
    return "";
  }
  const last = `the newest took ${duration(newest * 1000)}`;
  if (typical === null) {
    return last;
  }
  const percent = ratio === null ? 0 : Math.round(100 * (ratio - 1));
  const words = percent === 0 ? "as usual" : `${Math.abs(percent)} % ${percent > 0 ? "longer" : "less"} than usual`;
  return html`${last}, usually ${duration(typical * 1000)}: <b class=${percent >= 50 ? "tone-warn" : ""}>${words}</b>`;
}

function lasting(job, now) {
  const milliseconds = took(job, now);
  return milliseconds === null ? "" : job.terminal ? duration(milliseconds) : elapsed(milliseconds);
}

function Runs({ jobs, now }) {
  const isFleet = HERE.instance === "" && jobs.some((job) => text(job.instance) !== "");
  return html`<section class="panel"><h2>Jobs</h2><table class="runs">
    <thead><tr><th scope="col">Status</th><th scope="col">Started</th><th scope="col">Operation</th>
      ${isFleet && html`<th scope="col">Appliance</th>`}
      <th scope="col">Duration</th><th scope="col">Error</th></tr></thead>
    <tbody>${jobs.map((job) => {
      const shown = shownStatus(job.status);
      return html`<tr key=${job.job_id}>
        <td>${icon(shown.shape, shown.tone)} ${shown.word}</td>
        <td class="run-began" title=${inUtc(job.started_at)}>${shortTime(moment(job.started_at), now) || "not yet"}</td>
        <td class="run-what"><a href=${jobAddress(job.job_id, job.instance)}><span class="few-lines">${operationOf(job) || named(job.job_id)}</span></a></td>
        ${isFleet && html`<td class="run-where">${text(job.instance)}</td>`}
        <td class="run-took">${lasting(job, now)}</td>
        <td class="tone-bad run-error"><span class="few-lines">${text(job.error)}</span></td></tr>`;
    })}</tbody></table></section>`;
}

/** What has been read, what is being read, and the button for older jobs. */
function Rest({ history, empty, now, onMore }) {
  const back = moment(history.searchedTo);
  const until = back === null ? "" : ` back to ${shortTime(back, now)}`;
  const sentences = {
    loading: `Searching${until}…`,
    more: `Searched${until}.`,
    end: empty ? "No job of this VM or context is known." : "These are all its jobs.",
    full: `These are the newest ${counted(history.jobs.length, "job")}; older ones are not loaded here.`,
  };
  return html`<div class="rest">
    <p class="soft" role="status">${sentences[history.state]}</p>
    ${history.trouble !== null && html`<p class="tone-warn">Jobs may be missing: ${history.trouble}</p>`}
    ${history.state === "more" && html`<button type="button" class="button" onClick=${onMore}>Load ${PAGE} older jobs</button>`}
  </div>`;
}
