/** One line of a log: its time, which is its link, level, step, message and attributes. */

import { Component, html } from "./html.js";
import { inUtc, moment, shortTime } from "./times.js";
import { isolated, levelTone, named, text } from "./words.js";

const IDENTITY = new Set(["job_id", "step_id", "external_job_id", "step_name"]);
/** Attributes that name the job and step of a line, which the page shows already. */

export class LogLine extends Component {
  shouldComponentUpdate(next) {
    return ["step", "day", "text", "address", "isTarget"].some((name) => next[name] !== this.props[name]);
  }

  render({ line, step, day, text: wanted, address, isTarget }) {
    const at = moment(line.at);
    return html`<li class="line tone-line-${levelTone(line.level)} ${isTarget ? "is-target" : ""}"
      data-id=${line.event_id} aria-current=${isTarget ? "true" : null}>
      <a class="line-at" href=${address} tabindex=${isTarget ? 0 : -1}
        title="${inUtc(line.at)}: link to this line">${shortTime(at, day)}</a>
      <span class="line-level tone-${levelTone(line.level)}">${text(line.level)}</span>
      <span class="line-text">${step !== "" && html`<span class="line-step">${named(step)}</span> `}
        ${marked(text(line.message), wanted)} ${" "}<span class="line-attrs">${marked(attributes(line.attrs), wanted)}</span></span>
    </li>`;
  }
}

/** The text with each occurrence of `wanted` marked, in any case. */
function marked(whole, wanted) {
  if (wanted === "") {
    return whole;
  }
  const [lower, sought] = [whole.toLowerCase(), wanted.toLowerCase()];
  const parts = [];
  let from = 0;
  for (let at = lower.indexOf(sought); at !== -1; at = lower.indexOf(sought, from)) {
    parts.push(whole.slice(from, at), html`<mark>${whole.slice(at, at + sought.length)}</mark>`);
    from = at + sought.length;
  }
  return [...parts, whole.slice(from)];
}

/** The attributes of a line as text. */
export function attributes(attrs) {
  if (attrs === null || typeof attrs !== "object") {
    return text(attrs);
  }
  return Object.entries(attrs)
    .filter(([name, value]) => !IDENTITY.has(name) && text(value) !== "")
    .map(([name, value]) => `${isolated(text(name))}=${isolated(text(value))}`)
    .join("  ");
}
