/** Below the sentence of a failed job: how often that has happened, what operators say of it, and what was different. */

import { Component, html } from "./html.js";
import { HERE, failureAddress } from "./route.js";
import { fetchJson } from "./session.js";
import { brief, dayTime, moment } from "./times.js";
import { counted, named, text } from "./words.js";

/** It asks the daemon once; without an answer it draws nothing but why. */
export class Known extends Component {
  #closed = new AbortController();

  componentDidMount() {
    this.#ask();
  }

  componentWillUnmount() {
    this.#closed.abort();
  }

  async #ask() {
    const { job, session } = this.props;
    try {
      this.setState({ why: await fetchJson(session, session.job(job.job_id, "/why"), this.#closed.signal) });
    } catch (error) {
      if (!this.#closed.signal.aborted) {
        this.setState({ trouble: error.message });
      }
    }
  }

  render({ job, instance, now }, { why, trouble }) {
    if (why === undefined) {
      return trouble === undefined ? null : html`<p class="soft">How often this happened is not known: ${text(trouble)}</p>`;
    }
    return html`<div class="known" role="status">
      ${why.group !== null && html`<p><b>${stateWord(job.failure.state, why.group.count)}</b> ${often(why.group, why.reaches, now)}
        ${" "}<a href=${failureAddress(why.group.fingerprint, instance)}>${why.group.count === 1 ? "This failure" : "All of them"}</a></p>
        <${Note} of=${why.group.note} />`}
      ${why.burst !== null && html`<p>${counted(why.burst.failed, "job")} failed within ${brief(1000 * why.burst.within_seconds)}, ${why.burst.alike} of them with this text.</p>`}
      ${why.differs !== null && html`<${Differences} of=${why.differs} />`}
    </div>`;
  }
}

/** A failure was new when its job ended: meanwhile others may have failed like it. */
function stateWord(state, count) {
  return { new: count > 1 ? "New when it failed:" : "New:", known: count > 1 ? "Known:" : "" }[state] ?? "";
}

/** "57 times since 24 Nov, on 32 VMs.", or "for the first time since …". */
export function often({ count, first_at: first, vm_count: vms, instances }, reaches, now) {
  const on = vms === 0 ? "" : `, on ${counted(vms, "VM")}`;
  const of = HERE.instance === "" && instances?.length > 1 ? ` of ${counted(instances.length, "appliance")}` : "";
  if (count === 1) {
    const since = moment(reaches);
    return `no other job has failed like this${since === null ? "" : ` since ${dayTime(since, now)}, as far as is known`}.`;
  }
  return `${count.toLocaleString("en")} times since ${dayTime(moment(first), now)}${on}${of}.`;
}

/** What operators say of a failure. Only a web address becomes a link. */
export function Note({ of: note }) {
  if (note === null || note === undefined) {
    return null;
  }
  const link = /^https?:/.test(note.link ?? "") ? note.link : "";
  return html`<p class="failure-note">${text(note.text)}
    ${link !== "" && html`${" "}<a href=${link} rel="noopener noreferrer" target="_blank">More about it</a>`}</p>`;
}

function Differences({ of: { runs, vm_name: vm, missing, longer } }) {
  const usual = `${counted(runs, "completed run")}${vm === null ? "" : ` on ${named(vm)}`}`;
  return html`
    ${missing.length > 0 && html`<p>Compared with the last ${usual}, ${missing.length === 1 ? "a step is" : "steps are"} missing: ${missing.map(named).join(", ")}.</p>`}
    ${longer.map(
      (step) => html`<p key=${step.name}>${named(step.name)} took ${brief(1000 * step.seconds)}; in nine of ten of the last ${usual} it took at most ${brief(1000 * step.p90_seconds)}.</p>`,
    )}`;
}
