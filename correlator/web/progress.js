/**
 * `<correlator-progress job="ID">`: the progress of one job, by any of its IDs, in one line of a page.
 *
 * Importing this file defines the element; progress.d.ts describes it. In progress/: `appearance` says what is shown,
 * `parts` shows it, `style` is its style. All elements of a page with the same server and token share a connection.
 */

import { subscribe } from "./client/correlator.js";
import { Clock } from "./page/clock.js";
import { Progress } from "./page/outlook.js";
import { appearance } from "./progress/appearance.js";
import { Parts } from "./progress/parts.js";

/** @import { Job, SharedOptions, Subscription, Update } from "./client.js" */

const CLOCK_INTERVAL = 1000; // ms

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

if (globalThis.customElements && !customElements.get("correlator-progress")) {
  customElements.define("correlator-progress", CorrelatorProgress);
}
