/** Whether what is shown is true now: a word in the header, a banner where it may not be, a question for a token. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { clockTime, fullTime } from "./times.js";
import { shownState, text } from "./words.js";

const TRANSPORTS = new Map([
  ["websocket", "websocket"],
  ["sse", "event stream"],
  ["poll", "polling"],
]);

export function Standing({ connection }) {
  const { word, shape, tone } = shownState(connection.state);
  const more = [TRANSPORTS.get(connection.transport), lag(connection)].filter(Boolean).join(" · ");
  return html`<p class="standing">
    ${icon(shape, tone)} <b>${word}</b>
    ${connection.state === "live" && html`<span class="standing-more soft">${more}</span>`}
  </p>`;
}

function lag({ source, lag_seconds: seconds }) {
  if (source === null || !Number.isFinite(seconds)) {
    return "";
  }
  return seconds < 1 ? "database up to date" : `database ${seconds.toFixed(1)} s behind`;
}

/** Nothing while all is well, and nothing on the first connection: there is nothing old to warn of. */
export function Banner({ connection, asOf }) {
  const { state } = connection;
  if (state === "live" || state === "paused" || state === "refused" || (state === "connecting" && asOf === null)) {
    return null;
  }
  const since = asOf !== null && html` What is shown is <b title=${fullTime(asOf)}>as of ${clockTime(asOf)}</b>.`;
  const next = state === "offline" && connection.retry_at !== null;
  return html`<div class="banner tone-banner-${shownState(state).tone}" role="status">
    ${icon("alert")} <span><b>${reason(connection)}</b>${since}</span>
    ${next && html` <span aria-hidden="true">${retry(connection.retry_at)}</span>`}
  </div>`;
}

function reason({ state, source }) {
  if (state === "stale") {
    if (source === "down") {
      return "The appliance’s database does not answer.";
    }
    return source === "stale" ? "The appliance’s database is behind." : "Nothing heard for a while.";
  }
  return state === "offline" ? "Not connected." : "Connecting again.";
}

function retry(at) {
  const seconds = Math.ceil((at - Date.now()) / 1000);
  return seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now.";
}

/** The daemon wants a token, or another one. */
export class Refused extends Component {
  #submit = (event) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token").trim();
    if (token !== "") {
      this.props.onToken(token);
    }
  };

  render({ connection }) {
    return html`<form class="token" onSubmit=${this.#submit}>
      <h2>A token is needed</h2>
      <p>This correlator answers only who has one. It is kept until this tab is closed.</p>
      ${connection.error !== null && html`<p class="soft">The answer was: ${text(connection.error)}</p>`}
      <label>Token <input type="password" name="token" autocomplete="off" required /></label>
      <button type="submit">Connect</button>
    </form>`;
  }
}
