/**
 * The parts of the server that have a problem which the connection does not show, such as an MQTT broker that is too slow:
 * requested from time to time while the page is visible and connected.
 */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { HERE, isGateway } from "./place.js";
import { text } from "./words.js";

const EVERY = 60_000;
const SOON = 10_000;
/** Milliseconds between two requests; `SOON` while a part has a problem. */
const FIRST_WITHIN = 2000;
/** Milliseconds in which all pages ask after they have connected. */
const ANSWER_WITHIN = 10_000;

const NAMES = new Map([
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
  #onChange;
  #timer = 0;
  #isLive = false;
  #isAsking = false;

  /** The parts with a problem: `name`, and the `error` that the server gives. */
  problems = [];

  constructor(onChange) {
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
      const response = await fetch(new URL("health/ready", HERE.base), { signal: AbortSignal.timeout(ANSWER_WITHIN) });
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
          html`<span key=${name} class="health-part"><b>${NAMES.get(name) ?? name}:</b> ${error || "it has a problem"}. </span>`,
      )}</span></div>`;
  }
}
