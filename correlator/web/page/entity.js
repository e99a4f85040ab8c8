/** The page of one VM or context: its jobs over time, how each ended, how long it took, and the trend. */

import { Component, html, icon } from "./html.js";
import { HERE, entityAddress, jobAddress } from "./route.js";
import { fetchJson } from "./session.js";
import { markEntity } from "./status.js";
import { duration, inUtc, lasting, moment, shortTime, took } from "./times.js";
import { counted, named, operationOf, shownStatus, text, vmOf } from "./words.js";

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

// -- The jobs of one VM or context: pages of the daemon's history, with the documents of the live stream over them.
//
// Invariants: a job is present once, in its newest revision. The number of loaded jobs is bounded.

const PAGE = 100;
/** Jobs that one call of `load` adds, if there are so many. */
const MOST_JOBS = 2000;
/** Jobs on the page. */
const MOST_REQUESTS = 30;
/** Requests in one call of `load`: each reads a bounded part of the daemon's database. */

class History {
  #name;
  #jobs = new Map();
  #cursor = null;
  #closed = new AbortController();

  kind = null;
  contexts = new Set();
  /** `loading`, `more` (older jobs can be loaded), `end`, or `full`. */
  state = "loading";
  /** RFC 3339: all jobs after it have been read; null at the end. */
  searchedTo = null;
  trouble = null;

  constructor(name) {
    this.#name = name;
  }

  close() {
    this.#closed.abort();
  }

  /** The jobs, newest first. */
  get jobs() {
    const started = (job) => moment(job.started_at) ?? Number.POSITIVE_INFINITY;
    return [...this.#jobs.values()].sort((a, b) => started(b) - started(a) || (a.job_id < b.job_id ? 1 : -1));
  }

  /** Takes the jobs of a live update that belong here. Returns true if there are any. */
  follow(jobs, changed) {
    let any = false;
    for (const id of changed ?? jobs.keys()) {
      const job = jobs.get(id);
      if (job !== undefined && (this.#jobs.has(id) || this.#isOurs(job))) {
        this.#jobs.set(id, job);
        any = true;
      }
    }
    return any;
  }

  #isOurs(job) {
    const [vm, context] = [vmOf(job) === this.#name, job.context_id === this.#name];
    return this.kind === null ? vm || context : this.kind === "context" ? context : vm;
  }

  /** Loads `PAGE` more jobs, or up to the end. Calls `onPage` after each page of the daemon. */
  async load(session, onPage) {
    this.state = "loading";
    this.trouble = null;
    const wanted = this.#jobs.size + PAGE;
    let requests = 0;
    try {
      do {
        await this.#page(session, wanted - this.#jobs.size);
        requests += 1;
        onPage();
      } while (this.state === "loading" && this.#jobs.size < wanted && requests < MOST_REQUESTS);
      this.state = this.state === "loading" ? (this.#jobs.size < MOST_JOBS ? "more" : "full") : this.state;
    } catch (error) {
      this.trouble = error instanceof Error ? error.message : String(error);
      this.state = "more";
    }
    if (!this.#closed.signal.aborted) {
      onPage();
    }
  }

  async #page(session, limit) {
    const address = session.api(`entities/${encodeURIComponent(this.#name)}`);
    address.searchParams.set("limit", String(Math.max(1, limit)));
    if (this.#cursor !== null) {
      address.searchParams.set("cursor", this.#cursor);
      address.searchParams.set("kind", this.kind);
    }
    const page = await fetchJson(session, address, this.#closed.signal);
    if (this.kind === null) {
      this.kind = page.kind;
      this.#jobs = new Map([...this.#jobs].filter(([, job]) => this.#isOurs(job)));
    }
    for (const job of page.jobs) {
      if (!((this.#jobs.get(job.job_id)?.rev ?? -1) >= job.rev)) {
        this.#jobs.set(job.job_id, job);
      }
    }
    for (const context of page.contexts) {
      this.contexts.add(context);
    }
    this.#cursor = page.next_cursor;
    this.searchedTo = page.searched_to ?? null;
    this.trouble = page.complete ? null : page.reason;
    this.state = page.next_cursor === null ? "end" : "loading";
  }
}

// -- How the newest run of each operation compares with the runs before it. Pure.
//
// The same rule as `correlator.forecast.trends` of the daemon (tests/data/trends.json).

const TYPICAL_RUNS = 20;
/** Completed runs before the newest one, at the most, whose median is the typical duration. */

/** The trend of each operation of `jobs`, which are the newest first, in the order of its newest run. */
export function trends(jobs) {
  const operations = new Map();
  for (const job of jobs) {
    const key = JSON.stringify([job.job_type ?? null, job.operation ?? null]);
    operations.set(key, [...(operations.get(key) ?? []), job]);
  }
  return [...operations.values()].map(trend);
}

function trend(runs) {
  const count = (status) => runs.filter((run) => run.status === status).length;
  const completed = runs.filter((run) => run.status === "completed" && typeof run.duration_seconds === "number");
  const [newest = null, ...earlier] = completed.slice(0, TYPICAL_RUNS + 1).map((run) => run.duration_seconds);
  const typical = median(earlier);
  return {
    job_type: runs[0].job_type ?? null,
    operation: runs[0].operation ?? null,
    runs: runs.length,
    completed: count("completed"),
    failed: count("failed"),
    newest_seconds: newest,
    typical_seconds: typical,
    ratio: newest === null || !typical ? null : newest / typical,
  };
}

function median(numbers) {
  if (numbers.length === 0) {
    return null;
  }
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
