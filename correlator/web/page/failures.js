/** The failed jobs in groups that failed alike, and one such group: `#/failures` and `#/failures/<fingerprint>`. */

import { Component, html, icon } from "./html.js";
import { Note, often } from "./known.js";
import { HERE, SINCES, entityAddress, failureAddress, failuresAddress, jobAddress, replaceAddress } from "./route.js";
import { fetchJson } from "./session.js";
import { markFailures } from "./status.js";
import { brief, dayTime, isoDay, moment, shortTime } from "./times.js";
import { counted, named, text } from "./words.js";

const DAY = 86_400_000;
const WEEK = 7;
const AGAIN = 30_000;
/** Milliseconds after which the first page is asked for again. */

/** `fingerprint`: of one group, or "" for all. */
export function FailuresPage({ fingerprint, since, instance, session, now }) {
  const given = { session, instance, now };
  return html`<article class="entity failures">
    <p><a class="back" href=${fingerprint === "" ? "#/" : failuresAddress("7d", instance)}>${icon("back")} ${fingerprint === "" ? "All jobs" : "All failures"}</a></p>
    ${
      fingerprint === ""
        ? html`<${Groups} key=${since} since=${since} ...${given} />`
        : html`<${OneFailure} key=${fingerprint} fingerprint=${fingerprint} ...${given} />`
    }
  </article>`;
}

/** Requests that end with the view. `state.found` is the last answer, `state.trouble` why there is none. */
class Asking extends Component {
  #closed = new AbortController();
  #timer = 0;

  componentDidMount() {
    markFailures();
    this.load();
  }

  componentWillUnmount() {
    this.#closed.abort();
    clearTimeout(this.#timer);
  }

  /** `add(found, before)` adds an answer to the one before. The view asks again after `AGAIN`. */
  async ask(path, parameters, add = (found) => found) {
    const address = this.props.session.api(path);
    for (const [name, value] of Object.entries(parameters)) {
      address.searchParams.set(name, value);
    }
    this.setState({ isAsking: true });
    clearTimeout(this.#timer);
    try {
      const found = await fetchJson(this.props.session, address, this.#closed.signal);
      this.setState({ found: add(found, this.state.found), trouble: undefined, isAsking: false });
    } catch (error) {
      if (this.#closed.signal.aborted) {
        return;
      }
      this.setState({ trouble: error.message, isAsking: false });
    }
    this.#again();
  }

  /** A page that nobody sees asks nothing, and goes on when it is visible. */
  #again() {
    this.#timer = setTimeout(() => (document.visibilityState === "visible" ? this.load() : this.#again()), AGAIN);
  }
}

const WORDS = { "1d": "the last day", "7d": "the last 7 days", "30d": "the last 30 days" };

class Groups extends Asking {
  load() {
    if (!this.state.hasMore) {
      this.ask("failures", { since: this.props.since, limit: "100" });
    }
  }

  #more = () => {
    this.setState({ hasMore: true });
    const { found } = this.state;
    const add = (next, before) => ({ ...next, failures: [...before.failures, ...next.failures] });
    this.ask("failures", { since: this.props.since, limit: "100", cursor: found.next_cursor }, add);
  };

  render({ since, instance, now }, { found, trouble, isAsking }) {
    const groups = found?.failures ?? [];
    const jobs = groups.reduce((sum, { count }) => sum + count, 0);
    return html`<h1 tabindex="-1">Failures</h1>
      <p class="failures-since"><span class="soft">${found !== undefined && `${counted(jobs, "job")} of ${counted(groups.length, "kind")}${found.next_cursor === null ? "" : " so far"} in `}</span>
        <label class="choice"><span class="unseen">Period</span><select value=${since}
          onChange=${(event) => replaceAddress(failuresAddress(event.currentTarget.value, instance))}>
          ${SINCES.map((each) => html`<option key=${each} value=${each}>${WORDS[each]}</option>`)}</select></label>
        ${instance !== "" && html`<span class="soft"> on ${instance}</span>`}</p>
      <${Missing} found=${found} trouble=${trouble} />
      ${found !== undefined && groups.length === 0 && html`<p class="nothing">No job failed in ${WORDS[since]}.</p>`}
      ${groups.length > 0 && html`<section class="panel"><table class="runs groups">
        <thead><tr><th scope="col">Jobs</th><th scope="col">Why they failed</th><th scope="col">By day</th><th scope="col">VMs</th><th scope="col">Last</th></tr></thead>
        <tbody>${groups.map((group) => html`<${Group} key=${group.fingerprint} group=${group} instance=${instance} now=${now} />`)}</tbody>
      </table></section>`}
      ${found?.next_cursor && html`<p class="rest"><button type="button" class="button" disabled=${isAsking} onClick=${this.#more}>Load more</button></p>`}`;
  }
}

function Missing({ found, trouble }) {
  const reason = trouble ?? (found?.complete === false ? (found.reason ?? "the daemon gave no reason") : "");
  return reason === "" ? null : html`<p class="tone-warn" role="status">Failures may be missing: ${text(reason)}</p>`;
}

function Group({ group, instance, now }) {
  const { fingerprint, count, days, vm_count: vms, last_at: last, operations, instances } = group;
  const of = [...operations.slice(0, 3).map(named), HERE.instance === "" && instances?.join(", ")].filter(Boolean);
  return html`<tr>
    <td class="group-count"><b>${count.toLocaleString("en")}</b></td>
    <td class="group-why"><a href=${failureAddress(fingerprint, instance)}><span class="few-lines">${where(group)}${named(group.text)}</span></a>
      <span class="soft few-lines">${of.join(" · ")}</span><${Note} of=${group.note} /></td>
    <td class="group-days"><${Week} days=${days} now=${now} /></td>
    <td class="group-vms">${vms === 0 ? "" : counted(vms, "VM")}</td>
    <td class="group-last">${shortTime(moment(last), now)}</td></tr>`;
}

function where({ step, certainty }) {
  return ["stated", "inferred"].includes(certainty) && step !== null ? html`<b>${named(step)}:</b>${" "}` : "";
}

/** The numbers of the last days, as bars; days are those of UTC. */
function Week({ days, now, most = WEEK }) {
  const counts = new Map(days.map(({ day, count }) => [day, count]));
  const shown = Array.from({ length: most }, (_, place) => new Date(now - (most - 1 - place) * DAY).toISOString().slice(0, 10));
  const highest = Math.max(1, ...shown.map((day) => counts.get(day) ?? 0));
  const bar = (day) => {
    const count = counts.get(day) ?? 0;
    return html`<span key=${day} class="week-day" title=${`${day}: ${counted(count, "job")}`}>
      <span class=${count === 0 ? "week-none" : "week-bar"} style=${{ height: `${(100 * count) / highest}%` }}></span></span>`;
  };
  const words = shown.filter((day) => counts.has(day)).map((day) => `${day}: ${counts.get(day)}`);
  return html`<span class="week" role="img" aria-label=${words.join(", ") || "none in the last days"}>${shown.map(bar)}</span>`;
}

class OneFailure extends Asking {
  load() {
    this.ask(`failures/${encodeURIComponent(this.props.fingerprint)}`, {});
  }

  render({ fingerprint, instance, now }, { found, trouble }) {
    if (found === undefined) {
      return html`<h1 tabindex="-1">Failure ${named(fingerprint)}</h1>
        <p class="soft" role="status">${trouble === undefined ? "Loading…" : text(trouble)}</p>`;
    }
    const { group, variants, similar, next_runs: next, template } = found;
    return html`<h1 tabindex="-1">${named(group.text)}</h1>
      <p class="soft">${where(group)}${often(group, found.reaches, now)} The last one ended at ${shortTime(moment(group.last_at), now)}.</p>
      <${Note} of=${group.note} />
      <${Missing} found=${found} trouble=${trouble} />
      <section class="panel"><h2>By day <span class="soft">the last 30 days, in UTC</span></h2><${Week} days=${group.days} now=${now} most=${30} /></section>
      <section class="panel"><h2>Newest jobs</h2><table class="runs">
        <thead><tr><th scope="col">Ended</th><th scope="col">VM</th><th scope="col">Operation</th>${group.instances && html`<th scope="col">Appliance</th>`}</tr></thead>
        <tbody>${group.jobs.map(
          (job) => html`<tr key=${job.job_id}><td><a href=${jobAddress(job.job_id, job.instance ?? instance)}>${shortTime(moment(job.ended_at), now) || named(job.job_id)}</a></td>
          <td>${job.vm_name !== null && html`<a href=${entityAddress(job.vm_name, job.instance ?? instance)}>${named(job.vm_name)}</a>`}</td>
          <td>${named(job.operation)}</td>${group.instances && html`<td>${text(job.instance)}</td>`}</tr>`,
        )}</tbody></table></section>
      <${Facts} group=${group} next=${next} />
      <section class="panel"><h2>Texts <span class="soft">of which all are “${text(template)}”</span></h2>
        <ul class="trends">${variants.map((one) => html`<li key=${one.text}><b>${one.count.toLocaleString("en")}</b> <code>${text(one.text)}</code></li>`)}</ul></section>
      ${similar.length > 0 && html`<section class="panel"><h2>Similar failures <span class="soft">one word differs</span></h2>
        <ul class="trends">${similar.map((one) => html`<li key=${one.fingerprint}><b>${one.count.toLocaleString("en")}</b>
          <a href=${failureAddress(one.fingerprint, instance)}>${named(one.text)}</a>
          <span class="soft">“${named(one.other_word)}” in place of “${named(one.word)}”</span></li>`)}</ul></section>`}`;
  }
}

function Facts({ group, next }) {
  const facts = [
    ["Steps", group.steps.map(named).join(", ")],
    ["Operations", group.operations.map(named).join(", ")],
    ["VMs", group.vms.map(named).join(", ") + (group.vm_count > group.vms.length ? ` and ${group.vm_count - group.vms.length} more` : "")],
    ["Next runs", nextRuns(next)],
    ["Fingerprint", group.fingerprint],
  ].filter(([, value]) => value !== "");
  return html`<section class="panel"><h2>About</h2><dl class="facts">${facts.map(
    ([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`,
  )}</dl></section>`;
}

/** What the next run of the operation on the VM did. */
function nextRuns({ examined, completed, failed_alike: alike, failed_otherwise: otherwise, unknown, recovered_seconds: took }) {
  if (examined === 0) {
    return "";
  }
  const median = [...took].sort((a, b) => a - b)[Math.floor(took.length / 2)];
  const after = median === undefined ? "" : ` (${brief(1000 * median)} later in the median)`;
  return `of ${examined}: ${completed} completed${after}, ${alike} failed alike, ${otherwise} failed otherwise, ${unknown} not known`;
}
