/** State of the connection: a word in the header, a banner if the page may be out of date, a form for the token. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { clockTime, fullTime } from "./times.js";
import { shownState, text } from "./words.js";

const TRANSPORTS = new Map([
  ["websocket", "websocket"],
  ["sse", "event stream"],
  ["poll", "polling"],
]);

/** `of`: what `connection.source` is the state of, "database", "cluster" or "appliance". */
export function ConnectionState({ connection, of }) {
  const { word, shape, tone } = shownState(connection.state);
  const more = [TRANSPORTS.get(connection.transport), lag(connection, of)].filter(Boolean).join(" · ");
  return html`<p class="connection-state">
    ${icon(shape, tone)} <b>${word}</b>
    ${connection.state === "live" && html`<span class="connection-state-more soft">${more}</span>`}
  </p>`;
}

function lag({ source, lag_seconds: seconds }, name) {
  if (source === null || !Number.isFinite(seconds)) {
    return "";
  }
  return seconds < 1 ? `${name} up to date` : `${name} ${seconds.toFixed(1)} s behind`;
}

/** A warning that the page may be out of date. Empty while live, and during the first connection. */
export function Banner({ connection, asOf, of }) {
  const { state } = connection;
  if (state === "live" || state === "paused" || state === "refused" || (state === "connecting" && asOf === null)) {
    return null;
  }
  const since =
    asOf !== null && html` The page shows the state as of <b title=${fullTime(asOf)}>${clockTime(asOf)}</b>.`;
  const next = state === "offline" && connection.retry_at !== null;
  return html`<div class="banner tone-banner-${shownState(state).tone}" role="status">
    ${icon("alert")} <span><b>${reason(connection, of)}.</b>${since}</span>
    ${next && html` <span aria-hidden="true">${retry(connection.retry_at)}</span>`}
  </div>`;
}

function reason({ state, source, error }, of) {
  if (state !== "stale") {
    return state === "offline" ? "Not connected" : "Connecting again";
  }
  if (source === "stale" || source === "down") {
    return `${of[0].toUpperCase()}${of.slice(1)}: ${text(error) || "nothing has been read yet"}`;
  }
  return "No message from the daemon for over 25 s";
}

function retry(at) {
  const seconds = Math.ceil((at - Date.now()) / 1000);
  return seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now.";
}

/** The form for a token, if the daemon requires one or has rejected the last one. */
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
      <p>This correlator requires an access token. Enter one; it is stored until this tab is closed.</p>
      ${connection.error !== null && html`<p class="soft">The daemon answered: ${text(connection.error)}</p>`}
      <label>Token <input type="password" name="token" autocomplete="off" required /></label>
      <button type="submit">Connect</button>
    </form>`;
  }
}
