/**
 * `<correlator-progress job="ID">`: the progress of one job, by any of its IDs, in one line of a page.
 *
 * Importing this file defines the element; progress.d.ts describes it. `appearance` says what is shown, `Parts` shows it,
 * `STYLE` is its style. All elements of a page with the same server and token share a connection.
 */

import { subscribe } from "./client.js";
import { Progress, comparison, liveliness, outlook } from "./page/outlook.js";
import { errorLine, saysAll } from "./page/sentence.js";
import { Clock, clockTime } from "./page/times.js";
import {
  STATUSES,
  counted,
  currentStepOf,
  cutNote,
  shownState,
  shownStatus,
  stepsDone,
  subject,
  text,
} from "./page/words.js";

/** @import { Job, Remaining, SharedOptions, Subscription, Update } from "./client.js" */

const CLOCK_INTERVAL = 1000; // ms

/** What the daemon says when none is given. How it gets one on a connection is no concern of a page. */
const NO_TOKEN = /^(a token is needed) in hello$/;

// A server that renders the page has no elements; there the module may be imported all the same.
const Base = /** @type {typeof HTMLElement} */ (globalThis.HTMLElement ?? class {});

export class CorrelatorProgress extends Base {
  static observedAttributes = ["job", "server", "token", "label"];

  /** @type {SharedOptions["token"]} */ #token;
  /** @type {Subscription | null} */ #subscription = null;
  /** @type {unknown[] | null} what the subscription is for */ #followed = null;
  #isScheduled = false;
  /** @type {Update | null} */ #update = null;
  /** @type {Job | null} the last one: it stays when the daemon evicts it */ #job = null;
  /** @type {string | null} ID of the last job whose end was reported */ #ended = null;
  /** @type {string} the server's address is not valid */ #fault = "";
  #progress = new Progress();
  #clock = new Clock();
  /** @type {any} */ #timer = null;
  /** @type {Parts | null} */ #parts = null;

  connectedCallback() {
    // Properties that were set before this file was loaded hide the accessors.
    for (const name of /** @type {const} */ (["job", "server", "token", "label"])) {
      if (!Object.hasOwn(this, name)) continue;
      const value = this[name];
      delete this[name];
      /** @type {any} */ (this)[name] = value;
    }
    this.#schedule();
  }

  disconnectedCallback() {
    this.#schedule();
  }

  attributeChangedCallback() {
    this.#schedule();
  }

  get job() {
    return this.getAttribute("job");
  }

  set job(id) {
    this.#set("job", id);
  }

  get server() {
    return this.getAttribute("server");
  }

  set server(address) {
    this.#set("server", address);
  }

  get label() {
    return this.getAttribute("label");
  }

  set label(words) {
    this.#set("label", words);
  }

  /** The token, or a function that returns one: it takes precedence over the attribute. Setting it connects again. */
  get token() {
    return this.#token ?? this.getAttribute("token") ?? undefined;
  }

  set token(token) {
    this.#token = token ?? undefined;
    this.#followed = null;
    this.#schedule();
  }

  /** The last update of the job, as `subscribe` passes it; null before the first. */
  get update() {
    return this.#update;
  }

  /** @param {string} name @param {string | null | undefined} value */
  #set(name, value) {
    if (value === null || value === undefined) this.removeAttribute(name);
    else this.setAttribute(name, value);
  }

  /** Several changes at once, or a move within the page, are one. */
  #schedule() {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    queueMicrotask(() => {
      this.#isScheduled = false;
      this.#follow();
    });
  }

  #follow() {
    const { job: id, server, token } = this;
    const wanted = this.isConnected && id !== null && id !== "" ? [id, server, token] : null;
    if (!same(wanted, this.#followed)) {
      this.#subscription?.close();
      this.#subscription = this.#update = this.#job = this.#ended = null;
      this.#fault = "";
      this.#progress = new Progress();
      this.#clock = new Clock();
      this.#followed = wanted;
      if (wanted !== null) this.#subscribe(/** @type {string} */ (id), { url: server ?? undefined, token });
    }
    if (this.isConnected) this.#show();
    this.#keepTime();
  }

  /** @param {string} id @param {SharedOptions} options */
  #subscribe(id, options) {
    try {
      this.#subscription = subscribe(id, (update) => this.#receive(update), options);
    } catch (error) {
      this.#fault = `The server ${options.url ?? ""} is not an address: ${/** @type {Error} */ (error).message}`;
    }
  }

  /** @param {Update} update */
  #receive(update) {
    this.#update = update;
    this.#job = update.job ?? this.#job;
    this.#clock.connected(update.connection);
    this.#clock.documentsChanged(update.changed);
    this.#show();
    this.#keepTime();
    this.dispatchEvent(new CustomEvent("change", { detail: update }));
    if (!update.job?.terminal || update.job.job_id === this.#ended) return;
    this.#ended = update.job.job_id;
    this.dispatchEvent(new CustomEvent("end", { detail: update }));
  }

  #show() {
    this.#parts ??= new Parts(this.shadowRoot ?? this.attachShadow({ mode: "open" }));
    const [id, now, asOf] = [this.job ?? "", this.#clock.now(), this.#clock.asOf];
    const progress = this.#job === null ? { left: null, percent: null } : this.#progress.at(this.#job, now);
    const shown = appearance(this.#update, this.#job, { id, now, asOf, ...progress });
    if (this.#fault !== "") Object.assign(shown, { status: "", notice: this.#fault });
    if (this.#followed === null) Object.assign(shown, { status: "", value: "" });
    this.#parts.show(shown, { label: this.label, isOld: asOf !== null && !this.#job?.terminal });
  }

  /** Between two documents of a running job, its bar, its forecast and its silence go on by the clock. */
  #keepTime() {
    const runs = this.#subscription !== null && this.#job !== null && !this.#job.terminal;
    if (runs && this.#timer === null) this.#timer = setInterval(() => this.#show(), CLOCK_INTERVAL);
    if (runs || this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
  }
}

/** @param {unknown[] | null} one @param {unknown[] | null} other */
function same(one, other) {
  return one === other || (one !== null && other !== null && one.every((value, at) => value === other[at]));
}

// -- What it shows of a job at a moment. Pure. Text of the daemon becomes text only, never the name of a part.

/**
 * @typedef {object} Appearance
 * @property {string} kind  "waiting", or a status of a job, "late" or "overdue": the name of a part
 * @property {string} name  of the job, for its progress bar
 * @property {number | null} percent
 * @property {string} value  what a screen says of the bar
 * @property {string} status
 * @property {string} step
 * @property {string} forecast
 * @property {string} notice  why what is shown may be wrong, or that the job is silent
 * @property {string} error  its first line
 * @property {string} details  its other lines
 */

/**
 * @param {Update | null} update  null before the first
 * @param {Job | null} job  of the update, or the last one if the daemon has evicted it
 * @param {{id: string, now: number, asOf: number | null, left: Remaining | null, percent: number | null}} at
 * @returns {Appearance}
 */
export function appearance(update, job, { id, now, asOf, left, percent }) {
  const notice = connectionNotice(update, asOf);
  if (job === null) {
    const isRefused = update?.connection.state === "refused"; // so nothing is waited for, and the reason is the status
    const status = isRefused ? notice : update?.synced ? "Waiting for the job" : "Connecting";
    const shown = { step: "", forecast: "", notice: isRefused ? "" : notice, error: "", details: "" };
    return { kind: "waiting", name: id, percent: null, value: status, status, ...shown };
  }
  const outcome = outlook(job, now, left);
  const late = outcome?.lateness ? job.forecast?.state : undefined;
  const words = percentWords(job, percent);
  const step = job.terminal ? stepsDone(job) : currentStepOf(job) || stepsDone(job);
  const forecast = outcome === null ? comparison(job) : outcome.words;
  const doubts = [notice, update?.synced && update.job === null && "Last known state", liveliness(job, now).silent];
  return {
    kind: late ?? (STATUSES.includes(job.status) ? job.status : "waiting"),
    name: subject(job),
    percent,
    value: [words, stepsDone(job), currentStepOf(job), forecast].filter(Boolean).join(", "),
    status: statusWords(job, outcome),
    step,
    forecast,
    notice: job.terminal ? "" : doubts.filter(Boolean).join(" · "), // an end is final
    ...errorLines(job),
  };
}

/** @param {Job} job @param {number | null} percent */
function percentWords(job, percent) {
  if (percent === null) return "";
  return `${job.progress?.basis === "history" && !job.terminal ? "about " : ""}${Math.floor(percent)} %`;
}

/** @param {Job} job @param {ReturnType<typeof outlook>} outcome */
function statusWords(job, outcome) {
  const { word } = shownStatus(job.status);
  const failed = job.progress?.steps_failed ?? 0;
  if (job.status === "completed" && failed > 0) return `${word} with ${counted(failed, "failed step")}`;
  return outcome?.lateness ? `${word}, ${outcome.lateness.word.toLowerCase()}: ${outcome.why}` : word;
}

/** @param {Job} job */
function errorLines(job) {
  const [first, ...rest] = text(job.error).trim().split("\n");
  const error = errorLine(job);
  const shown = saysAll(job) ? [] : error === first ? rest : [first, ...rest];
  return { error, details: [...shown, cutNote(job.error_cut)].join("\n").trim() };
}

/**
 * "" while the connection is up to date, and during the first attempt.
 * @param {Update | null} update @param {number | null} asOf
 */
function connectionNotice(update, asOf) {
  if (update === null) return "";
  const { state, error } = update.connection;
  if (state === "refused") return `Refused: ${text(error).replace(NO_TOKEN, "$1: set the attribute token")}`;
  if (state === "live" || state === "paused" || (asOf === null && state === "connecting")) return "";
  const { word } = shownState(state);
  return asOf === null ? `${word}: ${text(error) || "no connection yet"}` : `${word}: as of ${clockTime(asOf)}`;
}

// -- The elements inside it, and how they show an appearance.

const SHARES = 1000; // steps of the bar: one that hardly moves is not drawn again

class Parts {
  #track = element("div", "track", { role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" });
  #bar = element("div", "bar");
  #percent = element("span", "percent", { "aria-hidden": "true" });
  #status = element("span", "status", { role: "status" });
  #step = element("span", "step");
  #forecast = element("span", "forecast");
  #notice = element("span", "notice");
  #failure = element("p", "failure", {}, "error");
  #details = element("details", "failure", {}, "error");
  #summary = element("summary", "error-line");
  #rest = element("pre", "error-details");

  /** @param {ShadowRoot} root */
  constructor(root) {
    const line = element("div", "line");
    this.#track.append(this.#bar);
    line.append(this.#track, this.#percent, this.#status, this.#step, this.#forecast, this.#notice);
    this.#details.append(this.#summary, this.#rest);
    root.append(line, this.#failure, this.#details);
    adopt(root);
  }

  /** @param {Appearance} shown @param {{label: string | null, isOld: boolean}} about */
  show(shown, { label, isOld }) {
    const { kind, percent } = shown;
    const whole = percent === null ? null : Math.floor(percent);
    setAttribute(this.#track, "aria-label", label || shown.name || "Progress");
    setAttribute(this.#track, "aria-valuenow", whole === null ? null : String(whole));
    setAttribute(this.#track, "aria-valuetext", shown.value);
    setAttribute(this.#bar, "class", `bar ${kind}${isOld ? " old" : ""}`);
    setAttribute(this.#bar, "part", `bar ${kind}`);
    const place = `translateX(${Math.round(((percent ?? 0) * SHARES) / 100) / (SHARES / 100) - 100}%)`;
    if (this.#bar.style.transform !== place) this.#bar.style.transform = place;
    setAttribute(this.#status, "part", `status ${kind}`);
    setText(this.#percent, whole === null ? "" : `${whole} %`);
    setText(this.#status, shown.status);
    setText(this.#step, shown.step);
    setText(this.#forecast, shown.forecast);
    setText(this.#notice, shown.notice);
    setText(this.#failure, shown.details === "" ? shown.error : "");
    setText(this.#summary, shown.error);
    setText(this.#rest, shown.details);
    this.#details.hidden = shown.details === "";
  }
}

/** @param {string} tag @param {string} name @param {{[name: string]: string}} [attributes] @param {string} [part] */
function element(tag, name, attributes = {}, part = name) {
  const made = document.createElement(tag);
  made.className = name;
  made.setAttribute("part", part);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Changes nothing that is the same: a live region announces what is set. @param {HTMLElement} where @param {string} words */
function setText(where, words) {
  if (where.textContent !== words) where.textContent = words;
  where.hidden = words === "";
}

/** @param {HTMLElement} where @param {string} name @param {string | null} value */
function setAttribute(where, name, value) {
  if (value === null) where.removeAttribute(name);
  else if (where.getAttribute(name) !== value) where.setAttribute(name, value);
}

/** @type {CSSStyleSheet | undefined} one for all elements; the content security policy of a page allows it */
let sheet;

/** @param {ShadowRoot} root */
function adopt(root) {
  if (sheet === undefined) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  root.adoptedStyleSheets = [sheet];
}

// -- Its style. A page changes it by the variables, or by `::part`.

const STYLE = `
:host { display: block; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
:host([hidden]), [hidden] { display: none !important; }
.line { display: flex; flex-wrap: wrap; align-items: center; gap: 0.15em var(--correlator-gap, 0.75em); }
.track {
  flex: 1 1 var(--correlator-width, 10em); height: var(--correlator-height, 0.6em); overflow: hidden;
  border-radius: var(--correlator-radius, 99px);
  background: var(--correlator-track, light-dark(#dfe3e8, #303742));
}
.bar {
  height: 100%; border-radius: inherit; transform: translateX(-100%); transition: transform 0.4s;
  background: var(--correlator-running, light-dark(#0072b2, #56b4e9));
}
.bar.completed { background: var(--correlator-completed, light-dark(#008a64, #2bc095)); }
.bar.failed { background: var(--correlator-failed, light-dark(#c24e00, #ff8d47)); }
.bar.late, .bar.overdue { background: var(--correlator-late, light-dark(#b07a00, #f0b429)); }
.bar.cancelled { background: var(--correlator-cancelled, light-dark(#7f8895, #7d8898)); }
.bar.old { filter: grayscale(0.85); }
.percent { font-weight: 600; min-width: 3.2em; }
.notice { font-style: italic; }
.failure { margin: 0.2em 0 0; color: var(--correlator-error, light-dark(#a04000, #ff9d61)); }
.failure pre { margin: 0.2em 0 0; white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: 0.9em; }
summary { cursor: pointer; }
@media (prefers-reduced-motion: reduce) { .bar { transition: none; } }
@media (forced-colors: active) {
  .track { border: 1px solid CanvasText; }
  .bar { forced-color-adjust: none; background: Highlight !important; }
}
`;

if (globalThis.customElements && !customElements.get("correlator-progress")) {
  customElements.define("correlator-progress", CorrelatorProgress);
}
