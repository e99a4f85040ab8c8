/** Search and filters of the list, stored in its address, with the number of jobs by status. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { listAddress } from "./route.js";
import { isoDay } from "./times.js";
import { LATENESS, STATUSES, counted, shownLateness, shownStatus } from "./words.js";

const MONTH = 30 * 86_400_000;
/** Milliseconds from the first to the last day that a new period has. */

/** Changes the filter in the address, without a history entry for each letter, so that Back leaves the list. */
export function changeFilter(filter, change) {
  history.replaceState(null, "", listAddress({ ...filter, ...change }));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export class Filters extends Component {
  #change(change) {
    changeFilter(this.props.filter, change);
  }

  #pickPeriod = (event) => {
    const when = event.currentTarget.value;
    const now = Date.now();
    const days = when === "days" ? { from: isoDay(now - MONTH), to: isoDay(now) } : { from: "", to: "" };
    this.#change({ ...days, when: when === "all" ? "all" : "" });
  };

  #submit = (event) => {
    event.preventDefault();
    this.props.onEnter();
  };

  /** Buttons that add a value to the filter `name`, or remove it. */
  #chips(name, values, shownAs, counts) {
    const chosen = this.props.filter[name];
    return values.map((value) => {
      const shown = shownAs(value);
      const pressed = chosen.includes(value);
      const toggled = values.filter((other) => chosen.includes(other) !== (other === value));
      return html`<button type="button" class="chip" aria-pressed=${String(pressed)}
        onClick=${() => this.#change({ [name]: toggled })}>
        ${icon(shown.shape, shown.tone)} ${shown.word} <b>${counts.get(value) ?? 0}</b>
      </button>`;
    });
  }

  render({ filter, listing, seen }) {
    const { counts, forecasts, types } = listing;
    const known = filter.type === "" || types.includes(filter.type) ? types : [filter.type, ...types];
    const isPeriod = filter.from !== "" || filter.to !== "";
    const forecasted = forecasts.size > 0 || filter.forecast.length > 0;
    return html`<form class="filters ${forecasted ? "has-forecast" : ""}" role="search" onSubmit=${this.#submit}>
      <label class="search">
        <span class="unseen">Search by ID, VM, operation or text</span>
        <input type="search" id="search" placeholder="ID, VM, operation, text" value=${filter.q} autocomplete="off"
          spellcheck="false" aria-keyshortcuts="/"
          onInput=${(event) => this.#change({ q: event.currentTarget.value })} />
        <kbd aria-hidden="true">/</kbd>
      </label>
      <div class="chips" role="group" aria-label="Status">
        ${this.#chips("status", STATUSES, shownStatus, counts)}
      </div>
      ${
        forecasted &&
        html`<div class="chips" role="group" aria-label="Forecast">
        ${this.#chips("forecast", LATENESS, shownLateness, forecasts)}
      </div>`
      }
      ${
        (listing.stalled > 0 || filter.stalled !== "") &&
        html`<div class="chips" role="group" aria-label="Silence">
        <button type="button" class="chip" aria-pressed=${String(filter.stalled !== "")}
          onClick=${() => this.#change({ stalled: filter.stalled === "" ? "1" : "" })}>
          ${icon("alert", "warn")} Stalled <b>${listing.stalled}</b></button>
      </div>`
      }
      <label class="choice"><span class="unseen">Type</span>
        <select value=${filter.type} onChange=${(event) => this.#change({ type: event.currentTarget.value })}>
          <option value="">All types</option>
          ${known.map((type) => html`<option key=${type} value=${type}>${type}</option>`)}
        </select>
      </label>
      <label class="choice"><span class="unseen">Period</span>
        <select value=${isPeriod ? "days" : filter.when} disabled=${filter.q !== "" && !isPeriod} onChange=${this.#pickPeriod}>
          <option value="">Last 24 hours</option>
          <option value="all">All</option>
          <option value="days">From … to …</option>
        </select>
      </label>
      ${
        isPeriod &&
        [
          ["from", "From", undefined, filter.to || undefined],
          ["to", "to", filter.from || undefined, undefined],
        ].map(
          ([name, label, min, max]) => html`<label key=${name} class="choice day">${label}
            <input type="date" value=${filter[name]} min=${min} max=${max}
              onChange=${(event) => this.#change({ [name]: event.currentTarget.value })} /></label>`,
        )
      }
      <${Failures} listing=${listing} seen=${seen} />
      <p class="unseen">${counted(listing.shown.length, "job")}</p>
    </form>`;
  }
}

/** Buttons that take the failed jobs out of the first rows, and that bring them back. */
function Failures({ listing, seen }) {
  const { unseen, seenFailed } = listing;
  return html`${
    unseen.length > 0 &&
    html`<button type="button" class="quiet-button mark-seen" onClick=${() => seen.add(unseen)}
      title="They stay in the list, but no longer come first. Only this browser remembers it.">
      ${icon("check")} Mark ${counted(unseen.length, "failure")} as seen</button>`
  }${
    unseen.length === 0 &&
    seenFailed.length > 0 &&
    html`<button type="button" class="quiet-button mark-seen" onClick=${() => seen.remove(seenFailed)}>
      ${icon("back")} ${counted(seenFailed.length, "failure")} seen: show first again</button>`
  }`;
}
