/** What the page says of its state: of the connection and of the server's parts in the header, of the jobs in the tab. */

import { Component, html, icon, iconAddress } from "./html.js";
import { HERE, isGateway } from "./route.js";
import { clockTime, fullTime } from "./times.js";
import { isolated, named, shownLateness, shownState, shownStatus, subject, text } from "./words.js";

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
    ${icon("alert")} <span><b>${reason(connection, of)}.</b>${since}${
      next && html` <span aria-hidden="true">${retry(connection.retry_at)}</span>`
    }</span>
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

export function reload(event) {
  event.preventDefault();
  location.reload();
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
      <p class="soft">If you signed in to open this page, your session may have ended: <a href="" onClick=${reload}>load it again</a>.</p>
    </form>`;
  }
}

// -- The parts of the server with a problem that the connection does not show, such as an MQTT broker that is too slow:
// requested from time to time while the page is visible and connected.

const EVERY = 60_000;
const SOON = 10_000;
/** Milliseconds between two requests; `SOON` while a part has a problem. */
const FIRST_WITHIN = 2000;
/** Milliseconds in which all pages ask after they have connected. */
const ANSWER_WITHIN = 10_000;

const PART_NAMES = new Map([
  ["database", "Database"],
  ["mqtt", "MQTT"],
  ["otlp", "Traces"],
  ["webhooks", "Webhooks"],
  ["checkpoint", "Checkpoint"],
  ["cluster", "Cluster"],
]);

/** True for what the connection shows: a server's source, and the tables that it is not read in full for. */
function isShown(name, { state }) {
  return name === "tables" || (name === "database" && state !== "live") || (name === "cluster" && isGateway());
}

export class Health {
  #headers;
  #onChange;
  #timer = 0;
  #isLive = false;
  #isAsking = false;

  /** The parts with a problem: `name`, and the `error` that the server gives. */
  problems = [];

  /** `headers`: returns those of a request to the API, without whose token the answer has no errors. */
  constructor(headers, onChange) {
    this.#headers = headers;
    this.#onChange = onChange;
    document.addEventListener("visibilitychange", () => this.#ask());
  }

  /** Call it with each state of the connection. */
  connected({ state }) {
    const isLive = state === "live";
    if (isLive && !this.#isLive) {
      this.#askAfter(Math.random() * FIRST_WITHIN);
    }
    this.#isLive = isLive;
  }

  #askAfter(wait) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), wait);
  }

  async #ask() {
    if (!this.#isLive || this.#isAsking || document.visibilityState !== "visible") {
      return; // It is asked again when the page is visible or connected again.
    }
    this.#isAsking = true;
    try {
      const options = { headers: this.#headers(), signal: AbortSignal.timeout(ANSWER_WITHIN) };
      const response = await fetch(new URL("health/ready", HERE.base), options);
      if (response.ok) {
        this.#become(problemsOf((await response.json()).parts));
      }
    } catch {
      // The server is away, which the connection shows.
    }
    this.#isAsking = false;
    this.#askAfter((this.problems.length > 0 ? SOON : EVERY) * (0.8 + 0.4 * Math.random()));
  }

  #become(problems) {
    const hasChanged = JSON.stringify(problems) !== JSON.stringify(this.problems);
    this.problems = problems;
    if (hasChanged) {
      this.#onChange();
    }
  }
}

/** Pure. */
function problemsOf(parts) {
  return Object.entries(parts ?? {})
    .filter(([name, part]) => part?.ok === false && !isShown(name, part))
    .map(([name, part]) => ({ name, error: text(part.error) }));
}

/** A warning that names the parts. */
export class HealthBanner extends Component {
  render({ problems }) {
    if (problems.length === 0) {
      return null;
    }
    return html`<div class="banner tone-banner-warn health-banner" role="status">${icon("alert")}
      <span>${problems.map(
        ({ name, error }) =>
          html`<span key=${name} class="health-part"><b>${PART_NAMES.get(name) ?? name}:</b> ${error || "it has a problem"}. </span>`,
      )}</span></div>`;
  }
}

// -- Title and icon of the browser tab, which show the state of the jobs.

const COLOURS = new Map([
  ["running", "#3a8fd0"],
  ["good", "#009e73"],
  ["bad", "#d55e00"],
  ["warn", "#e69f00"],
  ["quiet", "#8a8f98"],
]);

const NAME = "correlator";

/** Failed jobs that are marked as seen are not counted. */
export function markCounts({ counts, seen }, connection) {
  const failed = (counts.get("failed") ?? 0) - seen;
  const running = counts.get("running") ?? 0;
  const summary = [failed > 0 && `${failed} failed`, running > 0 && `${running} running`].filter(Boolean).join(", ");
  const away = connection.state === "offline" ? "offline – " : "";
  mark(`${away}${summary === "" ? NAME : `${summary} – ${NAME}`}`, null);
}

/** `percent`: as the page shows it. */
export function markJob(job, silent, percent) {
  const { word, shape, tone } = shownStatus(job.status);
  const running = job.status === "running";
  const state = running && percent !== null ? `${Math.floor(percent)} %` : word;
  const failed = job.status === "completed" && (job.progress?.steps_failed ?? 0) > 0;
  const late = job.terminal ? null : shownLateness(job.forecast?.state);
  const mixed = failed ? ["alert", "bad"] : [shape, tone];
  const image = silent !== null ? ["alert", "warn"] : late !== null ? [late.shape, late.tone] : mixed;
  const doubt = silent !== null ? "silent, " : late !== null ? `${late.word.toLowerCase()}, ` : "";
  mark(`${doubt}${state} – ${titled(subject(job))} – ${NAME}`, image);
}

export function markEntity(name) {
  mark(`${titled(named(name))} – ${NAME}`, null);
}

export function markFailures() {
  mark(`Failures – ${NAME}`, null);
}

export function markWaiting(id) {
  mark(`waiting – ${titled(named(id))} – ${NAME}`, ["ring", "quiet"]);
}

const MOST_SHOWN = 200;
/** Characters of a name in the title. */

function titled(name) {
  return isolated(name.slice(0, MOST_SHOWN));
}

let marked = "";

function mark(title, image) {
  if (document.title !== title) {
    document.title = title;
  }
  const link = document.querySelector("link[rel=icon]");
  const address = image === null ? "favicon.svg" : iconAddress(image[0], COLOURS.get(image[1]) ?? COLOURS.get("quiet"));
  if (link !== null && marked !== address) {
    marked = address;
    link.href = address;
  }
}
