/** One job, live, by any ID; also by one that nobody knows yet. */

import { Family } from "./family.js";
import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { Id } from "./ids.js";
import { LogPane } from "./log.js";
import { markJob, markWaiting } from "./marks.js";
import { liveliness } from "./silence.js";
import { Steps } from "./steps.js";
import { duration, elapsed, inUtc, moment, shortTime } from "./times.js";
import { counted, deed, shownStatus, subject, text } from "./words.js";

export class JobPage extends Component {
  #subscription = null;

  constructor(props) {
    super(props);
    this.state = { job: null, gone: false, synced: false, level: "INFO" };
  }

  componentDidMount() {
    this.#follow();
    this.#mark();
  }

  componentDidUpdate(before) {
    this.#mark();
    if (before.session !== this.props.session) {
      this.#subscription?.close();
      this.#follow();
    }
  }

  componentWillUnmount() {
    this.#subscription?.close();
  }

  #mark() {
    const { job } = this.state;
    if (job === null) {
      markWaiting(this.props.id);
    } else {
      markJob(job, liveliness(job, this.props.now).silent);
    }
  }

  #follow() {
    const { id, session } = this.props;
    this.#subscription = session.client.subscribe(id, this.#heard);
    this.#heard(this.#subscription.update);
  }

  /** A job that has left the daemon's memory stays on the page as it was last. */
  #heard = (update) => {
    const before = this.state.job;
    const job = update.job ?? before;
    this.props.session.clock.heard(update.jobs, update.changed);
    if (before !== null && job.job_id === before.job_id && job.status !== before.status) {
      this.props.onSay(`${subject(job)}: ${shownStatus(job.status).word}`);
    } else if (before === null && job !== null && this.state.synced) {
      this.props.onSay(`${subject(job)} has appeared: ${shownStatus(job.status).word}`);
    }
    this.setState({ job, synced: update.synced, gone: update.synced && update.job === null && job !== null });
  };

  render({ id, session, now, connection }, { job, gone, synced, level }) {
    if (job === null) {
      return html`<${Waiting} id=${id} synced=${synced} />`;
    }
    const { silent, since } = liveliness(job, now);
    return html`<article class="job">
      <${Head} job=${job} now=${now} silent=${silent} gone=${gone} />
      <div class="job-parts">
        <div class="job-main">
          <${Steps} job=${job} now=${now} silentSince=${since} />
          <${LogPane} key=${`${job.job_id} ${level}`} job=${job} session=${session} connection=${connection}
            level=${level} onLevel=${(chosen) => this.setState({ level: chosen })} />
        </div>
        <${Particulars} job=${job} session=${session} />
      </div>
    </article>`;
  }
}

function Waiting({ id, synced }) {
  return html`<div class="waiting">
    <p><a class="back" href="#/">${icon("back")} All jobs</a></p>
    <h1 tabindex="-1">${synced ? "Waiting for this ID" : "Looking for this ID"}</h1>
    <p><${Id} value=${id} /></p>
    ${
      synced &&
      html`<p class="soft">Nobody knows it yet. The job will appear here by itself as soon as it starts.</p>
      <span class="pulse" aria-hidden="true"></span>`
    }
  </div>`;
}

function Head({ job, now, silent, gone }) {
  const shown = shownStatus(job.status);
  const failed = job.progress?.steps_failed ?? 0;
  return html`<header class="job-head">
    <p><a class="back" href="#/">${icon("back")} All jobs</a></p>
    <h1 tabindex="-1">${subject(job)}</h1>
    <p class="job-what soft">${deed(job).join(" · ")}</p>
    <div class="job-state">
      <p class="pill tone-pill-${shown.tone}">${icon(shown.shape)} ${shown.word}</p>
      ${silent !== null && html`<p class="pill tone-pill-warn">${icon("alert")} ${silent}</p>`}
      ${job.status === "completed" && failed > 0 &&
        html`<p class="pill tone-pill-bad">${icon("alert")} with ${counted(failed, "failed step")}</p>`}
      ${gone && html`<p class="pill">No longer in the correlator’s memory: shown as it was last</p>`}
      <${Times} job=${job} now=${now} />
    </div>
    <${Percent} job=${job} tone=${shown.tone} silent=${silent} />
    ${text(job.error) !== "" &&
      html`<div class="failure"><h2>${icon("cross", "bad")} ${job.status === "failed" ? "Why it failed" : "Error"}</h2>
        <pre>${text(job.error)}</pre></div>`}
  </header>`;
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

function Percent({ job, tone, silent }) {
  const percent = job.progress?.percent ?? null;
  const { steps_done: done = 0, steps_seen: seen = 0 } = job.progress ?? {};
  const steps = seen === 0 ? "" : `${done} of ${counted(seen, "step")} done${job.terminal ? "" : " so far"}`;
  const told = [percent === null ? "unknown" : `${Math.floor(percent)} %`, steps, text(job.current_step)].filter(
    Boolean,
  );
  return html`<div class="percent">
    <div class="bar bar-large" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"
      aria-valuenow=${percent === null ? undefined : Math.floor(percent)} aria-valuetext=${told.join(", ")}>
      <span class="bar-done tone-bar-${tone} ${silent === null ? "" : "is-silent"}"
        style=${{ width: `${percent ?? 0}%` }}></span>
    </div>
    <p class="percent-words"><b>${told[0]}</b> <span class="soft">${told.slice(1).join(" · ")}</span></p>
  </div>`;
}

function Particulars({ job, session }) {
  const rows = Object.entries(job.metadata ?? {}).filter(([, value]) => text(value) !== "");
  const facts = [
    ["Owner", job.owner],
    ["Category", job.category],
    ["Warnings", job.warnings],
    ["Errors", job.errors],
    ["Known from", job.source],
    ["Progress by", job.progress?.basis],
  ].filter(([, value]) => text(value) !== "");
  return html`<aside class="particulars" aria-label="Particulars">
    <${Family} job=${job} session=${session} />
    <section><h2>IDs</h2><dl class="facts is-stacked">
      <div><dt>Job</dt><dd><${Id} value=${job.job_id} /></dd></div>
      ${(job.external_ids ?? []).map(
        (id) => html`<div key=${id}><dt>External</dt><dd><${Id} value=${id} /></dd></div>`,
      )}
      ${job.context_id && html`<div><dt>Context</dt><dd><${Id} value=${job.context_id} /></dd></div>`}
    </dl></section>
    <section><h2>About</h2><dl class="facts">
      ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${text(value)}</dd></div>`)}
    </dl></section>
    ${
      rows.length > 0 &&
      html`<section><h2>Metadata</h2><dl class="facts">
      ${rows.map(([name, value]) => html`<div key=${name}><dt><code>${name}</code></dt><dd>${text(value)}</dd></div>`)}
    </dl></section>`
    }
  </aside>`;
}
