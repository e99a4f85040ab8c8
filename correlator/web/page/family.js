/** Parent and children of a job, with their name and state if the daemon knows them. */

import { Component, dotted, html } from "./html.js";
import { icon } from "./icons.js";
import { jobAddress } from "./route.js";
import { named, operations, shownStatus, subject } from "./words.js";

export class Family extends Component {
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
