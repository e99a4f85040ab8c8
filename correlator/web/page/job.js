/** The page of one job, found by any ID, also by one that does not exist yet. */

import { JobFailure } from "./failure.js";
import { Component, CopyButton, Id, bar, dotted, html, icon } from "./html.js";
import { LogPane } from "./log.js";
import { Progress, comparison, liveliness, outlook } from "./outlook.js";
import { entityAddress, jobAddress, logAddress, replaceAddress, searchAddress } from "./route.js";
import { NotifyButton, canNotify, withTicket } from "./session.js";
import { markJob, markWaiting } from "./status.js";
import { Steps } from "./steps.js";
import { duration, elapsed, inUtc, moment, shortTime } from "./times.js";
import {
  basisOfPercent,
  counted,
  currentStepOf,
  cutNote,
  entityOf,
  named,
  operations,
  origin,
  shownLateness,
  shownStatus,
  stepsDone,
  subject,
  text,
} from "./words.js";

export class JobPage extends Component {
  #subscription = null;
  #progress = new Progress();
  #hadFocus = false;
  /** The heading of the search has the focus: the job's heading replaces it. */

  constructor(props) {
    super(props);
    this.state = { job: null, gone: false, synced: false };
  }

  componentDidMount() {
    this.#follow();
    this.#mark();
  }

  componentDidUpdate(_, before) {
    this.#mark();
    if (this.#hadFocus && before.job === null && this.state.job !== null) {
      document.querySelector("h1").focus({ preventScroll: true });
    }
  }

  componentWillUnmount() {
    this.#subscription?.close();
  }

  /** The time of the job: it stands while the collector of its appliance is silent. */
  get #now() {
    const { fleet, now } = this.props;
    return fleet.asOf(this.state.job.instance, now);
  }

  #mark() {
    const { job } = this.state;
    if (job === null) {
      markWaiting(this.props.id);
    } else {
      const now = this.#now;
      if (job.failure) {
        this.props.onViews();
      }
      markJob(job, liveliness(job, now).silent, this.#progress.at(job, now).percent);
    }
  }

  #follow() {
    const { id, session } = this.props;
    this.#subscription = session.client.subscribe(id, this.#onUpdate);
    this.#onUpdate(this.#subscription.update);
  }

  /** Shows the update. A job that the daemon has evicted keeps its last state on the page. */
  #onUpdate = (update) => {
    const before = this.state.job;
    const job = update.job ?? before;
    if (text(job?.instance) !== "") {
      this.props.fleet.begin();
    }
    this.props.session.clock.documentsChanged(update.changed);
    const lateness = shownLateness(job?.forecast?.state);
    if (before !== null && job.job_id === before.job_id && job.status !== before.status) {
      this.props.onAnnounce(`${subject(job)}: ${shownStatus(job.status).word}`);
    } else if (lateness !== null && before?.job_id === job.job_id && before.forecast?.state !== job.forecast.state) {
      this.props.onAnnounce(`${subject(job)}: ${lateness.word}`);
    } else if (before === null && job !== null && this.state.synced) {
      this.props.onAnnounce(`${subject(job)} has appeared: ${shownStatus(job.status).word}`);
    }
    this.#hadFocus = before === null && document.activeElement?.localName === "h1";
    this.setState({ job, synced: update.synced, gone: update.synced && update.job === null && job !== null });
  };

  /** Chooses of the log by its address; another level keeps the line that is marked. */
  #choose = (change) => {
    const { id, instance, line, log } = this.props;
    replaceAddress(logAddress(id, instance, "level" in change ? line : null, { ...log, ...change }));
  };

  #pick = (step) => this.#choose({ step });

  /** How often the failure of the job has happened. It is asked once for each failure. */
  #known(job, now) {
    const { views, instance, session } = this.props;
    return job.failure && views !== null && html`<${views.Known} key=${job.failure.fingerprint} job=${job} instance=${instance} session=${session} now=${now} />`;
  }

  render({ id, instance, line, log, session, connection }, { job, gone, synced }) {
    if (job === null && connection.state === "refused") {
      return null; // nothing is sought until a token is entered
    }
    if (job === null) {
      return html`<${Waiting} id=${id} instance=${instance} synced=${synced} />`;
    }
    const now = this.#now;
    const { silent, since } = liveliness(job, now);
    const { left, percent } = this.#progress.at(job, now);
    return html`<article class="job">
      <${Head} job=${job} session=${session} now=${now} silent=${silent} gone=${gone} percent=${percent}
        forecast=${outlook(job, now, left)} known=${this.#known(job, now)} />
      <div class="job-parts">
        <div class="job-main">
          <${Steps} job=${job} now=${now} silentSince=${since} picked=${log.step} onPick=${this.#pick} />
          <${LogPane} key=${job.job_id} id=${id} instance=${instance} job=${job} session=${session} connection=${connection}
            target=${line} chosen=${log} onChoose=${this.#choose} />
        </div>
        <${Particulars} job=${job} session=${session} />
      </div>
    </article>`;
  }
}

function Waiting({ id, instance, synced }) {
  return html`<div class="waiting">
    <p><a class="back" href="#/">${icon("back")} All jobs</a></p>
    <h1 tabindex="-1">${synced ? "Waiting for this ID" : "Searching for this ID"}</h1>
    <p><${Id} value=${id} /></p>
    ${
      synced &&
      html`<p class="soft">No job${instance !== "" && ` of ${instance}`} has this ID yet. It appears here as soon as it starts.</p>
      ${instance !== "" && html`<p><a href=${jobAddress(id)}>Search for it on all appliances</a></p>`}
      <p><a href=${searchAddress(id)}>Search all jobs for this text</a></p>
      <span class="pulse" aria-hidden="true"></span>`
    }
  </div>`;
}

function Head({ job, session, now, silent, gone, percent, forecast, known }) {
  const shown = shownStatus(job.status);
  const failed = job.progress?.steps_failed ?? 0;
  const late = forecast?.lateness ?? null;
  const entity = entityOf(job);
  return html`<header class="job-head">
    <p class="job-top"><a class="back" href="#/">${icon("back")} All jobs</a>
      <span class="job-tools">
        ${!job.terminal && canNotify() && html`<${NotifyButton} id=${job.job_id} session=${session} />`}
        <${CopyButton} className="tool" label="Copy the link to this job"
          value=${() => linkTo(job)}>Copy link</${CopyButton}>
        <a class="tool" target="_blank" rel="noopener"
          ...${withTicket(session, session.job(job.job_id))}>JSON</a>
      </span></p>
    <h1 tabindex="-1">${subject(job)}</h1>
    <p class="job-what soft">${dotted([...operations(job), where(job)].filter(Boolean))}</p>
    ${entity !== "" && html`<p><a href=${entityAddress(entity, job.instance)}>All jobs of <span>${named(entity)}</span></a></p>`}
    <div class="job-state">
      <p class="pill tone-pill-${shown.tone}">${icon(shown.shape)} ${shown.word}</p>
      ${silent !== null && html`<p class="pill tone-pill-warn">${icon("alert")} ${silent}</p>`}
      ${late !== null &&
        html`<p class="pill tone-pill-${late.tone}">${icon(late.shape)} ${late.word}: ${forecast.why}</p>`}
      ${job.status === "completed" && failed > 0 &&
        html`<p class="pill tone-pill-bad">${icon("alert")} with ${counted(failed, "failed step")}</p>`}
      ${gone && html`<p class="pill">No longer in the correlator’s memory: this is its last known state</p>`}
      <${Times} job=${job} now=${now} />
    </div>
    <${Percent} job=${job} tone=${shown.tone} silent=${silent} percent=${percent} forecast=${forecast} />
    <${JobFailure} job=${job} known=${known} />
  </header>`;
}

/** The bookmarkable address of a job; at a gateway it names the appliance. */
function linkTo(job) {
  return new URL(jobAddress(job.external_ids?.[0] ?? job.job_id, job.instance), location.href).href;
}

function where(job) {
  return text(job.instance) === "" ? "" : `on ${text(job.instance)}`;
}

function Times({ job, now }) {
  const started = moment(job.started_at);
  const ended = moment(job.ended_at);
  return html`<dl class="times">
    ${
      started !== null &&
      (ended !== null || !job.terminal) &&
      html`<div><dt>${ended === null ? "Running for" : "Took"}</dt>
      <dd class="elapsed">${ended === null ? elapsed(now - started) : duration(ended - started)}</dd></div>`
    }
    <div><dt>Started</dt><dd title=${inUtc(job.started_at)}>${shortTime(started, now) || "not yet"}</dd></div>
    ${ended !== null && html`<div><dt>Ended</dt><dd title=${inUtc(job.ended_at)}>${shortTime(ended, now)}</dd></div>`}
  </dl>`;
}

const LONG = 200;
/** Characters of a value that has a place of its own to scroll. */

function Value({ of, children }) {
  return text(of).length > LONG
    ? html`<dd class="is-long" tabindex="0">${children}</dd>`
    : html`<dd>${children}</dd>`;
}

function Particulars({ job, session }) {
  const { _cut: cut = {}, ...members } = job.metadata ?? {};
  // `cut` has the sizes of what is missing. "*" is the sum of all members without a name there.
  const missing = Object.entries(cut).map(([name, full]) => [name === "*" ? "others" : name, cutNote(full)]);
  const rows = [...Object.entries(members), ...missing].filter(([, value]) => text(value) !== "");
  const soFar = job.counts_complete === false ? " so far: the log is still being counted" : "";
  const typical = (job.forecast ?? job.compared_with)?.typical_seconds ?? null;
  const facts = [
    ["Appliance", job.instance],
    ["Owner", job.owner],
    ["Category", job.category],
    ["Warnings", `${job.warnings}${soFar}`],
    ["Errors", `${job.errors}${soFar}`],
    ["Known from", origin(job)],
    ["Typical time", typical === null ? "" : duration(typical * 1000)],
    ["Failed before", job.forecast ? `${Math.round(100 * job.forecast.failure_rate)} % of runs` : ""],
    ["Percent from", basisOfPercent(job)],
  ].filter(([, value]) => text(value) !== "");
  return html`<aside class="particulars" aria-label="Particulars">
    <${Family} job=${job} session=${session} />
    <section><h2>IDs</h2><dl class="facts is-stacked">
      <div><dt>Job</dt><${Value} of=${job.job_id}><${Id} value=${job.job_id} /><//></div>
      ${(job.external_ids ?? []).map(
        (id) => html`<div key=${id}><dt>External</dt><${Value} of=${id}><${Id} value=${id} /><//></div>`,
      )}
      ${job.context_id && html`<div><dt>Context</dt><${Value} of=${job.context_id}><${Id} value=${job.context_id} />
        <a href=${entityAddress(job.context_id, job.instance)}>Its jobs</a><//></div>`}
    </dl></section>
    <section><h2>About</h2><dl class="facts">
      ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><${Value} of=${value}>${text(value)}<//></div>`)}
    </dl></section>
    ${
      rows.length > 0 &&
      html`<section><h2>Metadata</h2><dl class="facts">
      ${rows.map(([name, value]) => html`<div key=${name}><dt><code>${named(name)}</code></dt><${Value} of=${value}>${text(value)}<//></div>`)}
    </dl></section>`
    }
  </aside>`;
}

// -- The bar of one job with its percent, its steps, and when it will probably end or how long it took.

const FINE = 0.1;
/** Percent. A bar is drawn again once it has moved so far, so that one that hardly moves costs nothing. */

function Percent({ job, tone, silent, percent, forecast }) {
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

// -- Parent and children of a job, with their name and state if the daemon knows them.

class Family extends Component {
  #subscription = null;
  #requested = "";

  constructor(props) {
    super(props);
    this.state = { jobs: new Map() };
  }

  componentDidMount() {
    this.#follow();
  }

  componentDidUpdate() {
    this.#follow();
  }

  componentWillUnmount() {
    this.#subscription?.close();
  }

  #follow() {
    const ids = members(this.props.job);
    const wanted = ids.join("\n");
    if (wanted === this.#requested) {
      return;
    }
    this.#requested = wanted;
    this.#subscription?.close();
    this.#subscription =
      ids.length === 0 ? null : this.props.session.client.subscribe(ids, ({ jobs }) => this.setState({ jobs }));
  }

  render({ job }, { jobs }) {
    if (members(job).length === 0) {
      return null;
    }
    const { parent_job_id: parent, child_job_ids: children, child_job_ids_cut: all } = job;
    const more = typeof all === "number" ? all - (children ?? []).length : 0;
    return html`<section><h2>Family</h2>
      <ul class="family">
        ${parent && html`<${Member} id=${parent} job=${jobs.get(parent)} instance=${job.instance} relation="Parent" />`}
        ${more > 0 && html`<li class="soft">${more.toLocaleString("en")} older children are not listed</li>`}
        ${(children ?? []).map((id) => html`<${Member} key=${id} id=${id} job=${jobs.get(id)} instance=${job.instance} relation="Child" />`)}
      </ul>
    </section>`;
  }
}

function members(job) {
  return [job.parent_job_id, ...(job.child_job_ids ?? [])].filter((id) => typeof id === "string");
}

function Member({ id, job, instance, relation }) {
  const shown = job === undefined ? null : shownStatus(job.status);
  return html`<li><span class="soft">${relation}</span> ${shown !== null && icon(shown.shape, shown.tone)}
    ${" "}<a href=${jobAddress(id, instance)}>${job === undefined ? named(id) : subject(job)}</a>
    ${shown !== null && html` <span class="soft">${dotted([...operations(job).slice(0, 1), shown.word])}</span>`}</li>`;
}
