/** Search and filters, which are the address of the list; their counts are its summary. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { listAddress } from "./route.js";
import { STATUSES, counted, shownStatus } from "./words.js";

export class Filters extends Component {
  #change(change) {
    // Not an entry in the history for each letter: Back leads out of the list.
    history.replaceState(null, "", listAddress({ ...this.props.filter, ...change }));
    dispatchEvent(new HashChangeEvent("hashchange"));
  }

  #toggled(status) {
    const { filter } = this.props;
    const chosen = STATUSES.filter((other) => filter.status.includes(other) !== (other === status));
    this.#change({ status: chosen });
  }

  render({ filter, counts, types, total }) {
    const known = filter.type === "" || types.includes(filter.type) ? types : [filter.type, ...types];
    return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label class="search">
        <span class="unseen">Search by ID, VM, operation or text</span>
        <input type="search" id="search" placeholder="ID, VM, operation, text" value=${filter.q} autocomplete="off"
          spellcheck="false" aria-keyshortcuts="/"
          onInput=${(event) => this.#change({ q: event.currentTarget.value })} />
        <kbd aria-hidden="true">/</kbd>
      </label>
      <div class="chips" role="group" aria-label="Status">
        ${STATUSES.map((status) => {
          const shown = shownStatus(status);
          const pressed = filter.status.includes(status);
          return html`<button type="button" class="chip" aria-pressed=${String(pressed)}
            onClick=${() => this.#toggled(status)}>
            ${icon(shown.shape, shown.tone)} ${shown.word} <b>${counts.get(status) ?? 0}</b>
          </button>`;
        })}
      </div>
      <label class="choice"><span class="unseen">Type</span>
        <select value=${filter.type} onChange=${(event) => this.#change({ type: event.currentTarget.value })}>
          <option value="">All types</option>
          ${known.map((type) => html`<option key=${type} value=${type}>${type}</option>`)}
        </select>
      </label>
      <label class="choice"><span class="unseen">Period</span>
        <select value=${filter.when} disabled=${filter.q !== ""}
          onChange=${(event) => this.#change({ when: event.currentTarget.value })}>
          <option value="">Last 24 hours</option>
          <option value="all">All there are</option>
        </select>
      </label>
      <p class="unseen">${counted(total, "job")}</p>
    </form>`;
  }
}
