/** The heads of the list's columns, which choose its order. */

import { html } from "./html.js";

const URGENCY = "the most urgent first";
const WORDS = {
  "-start": "newest first",
  start: "oldest first",
  "-duration": "longest first",
  duration: "shortest first",
  end: "soonest first",
  "-end": "latest first",
  appliance: "grouped by appliance",
  "-appliance": "grouped by appliance, from the last name",
};

/**
 * `sort`: the order of the list, as in its address. `onSort(order)` chooses one; "" is the list's own order. `fleet`:
 * the jobs are of several appliances.
 */
export function Columns({ sort, fleet, onSort }) {
  const head = (name, word, first, second) => {
    const next = sort === first ? second : sort === second ? "" : first;
    const chosen = sort === first || sort === second;
    return html`<button type="button" class="column column-${name}" aria-pressed=${String(chosen)}
      aria-label=${chosen ? `${word}, ${WORDS[sort]}` : word} title="Sort: ${next === "" ? URGENCY : WORDS[next]}" onClick=${() => onSort(next)}>
      ${word}${chosen && (sort.startsWith("-") ? " ↓" : " ↑")}
    </button>`;
  };
  return html`<div class="columns" role="group" aria-label="Sort by">
    <button type="button" class="column" aria-pressed=${String(sort === "")} title="Sort: ${URGENCY}"
      onClick=${() => onSort("")}>Urgency</button>
    <span class="column-job" aria-hidden="true">Job</span>
    ${fleet && head("appliance", "Appliance", "appliance", "-appliance")}
    ${head("end", "Forecast end", "end", "-end")}
    ${head("start", "Started", "-start", "start")}
    ${head("duration", "Duration", "-duration", "duration")}
  </div>`;
}
