/**
 * The appliances of a gateway and their health, requested from time to time while the page is visible, and at once when
 * the state of the connection's source changes: many pages may be open.
 *
 * A daemon without a cluster has none: nothing is requested until something names an appliance.
 */

import { HERE, isGateway } from "./place.js";
import { brief, moment } from "./times.js";

const EVERY = 30_000;
const SOON = 5000;
/** Milliseconds between two requests; `SOON` while a view shows the answer. */
const WITHIN = 2000;
/** Milliseconds in which all pages ask after a change of the source. */
const ANSWER_WITHIN = 10_000;
const UNWRITTEN_AFTER = 5;
/** Seconds after which a change that the cluster does not have is a problem, as for a gateway. */

export class Fleet {
  #session;
  #onChange;
  #timer = 0;
  #isAsking = false;
  #isHasty = false;
  #source = null;
  #closed = new AbortController();

  /** `unknown` until something names an appliance, `asked`, `known`, or `absent` if this is no gateway. */
  state = "unknown";
  /** Instance name → its row of `GET /api/v1/instances`, in the order of the names; a new map after each change. */
  instances = new Map();

  constructor(session, onChange) {
    this.#session = session;
    this.#onChange = onChange;
  }

  open() {
    if (isGateway()) {
      this.begin();
    }
    document.addEventListener("visibilitychange", this.#shown);
  }

  close() {
    this.#closed.abort();
    clearTimeout(this.#timer);
    document.removeEventListener("visibilitychange", this.#shown);
  }

  /** Starts the requests. Call it when a document or an address names an appliance. */
  begin() {
    if (this.state === "unknown") {
      this.state = "asked";
      this.#ask();
    }
  }

  /** A view shows the health of the appliances, or it no longer does: asks more often. */
  set isHasty(isHasty) {
    this.#isHasty = isHasty;
    if (isHasty && this.state === "known") {
      this.#ask();
    }
  }

  /**
   * The connection to the whole fleet as it is shown: an appliance that is silent does not make the others old. Call it
   * with each change.
   */
  shown(connection) {
    const { state, source } = connection;
    if (source !== this.#source && this.state === "known") {
      this.#source = source;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#ask(), Math.random() * WITHIN);
    }
    const isPartial = state === "stale" && (source === "stale" || source === "down") && this.#isAnyOnline;
    return isPartial ? { ...connection, state: "live", source: null } : connection;
  }

  get #isAnyOnline() {
    return [...this.instances.values()].some((known) => known.online);
  }

  /** True if nothing comes from the collector of an appliance. */
  isSilent(instance) {
    return this.instances.get(instance)?.online === false;
  }

  /** The time up to which the jobs of an appliance are certain: while its collector is silent, when it was last seen. */
  asOf(instance, now) {
    return this.isSilent(instance) ? Math.min(now, moment(this.instances.get(instance).last_seen) ?? now) : now;
  }

  #shown = () => {
    if (document.visibilityState === "visible" && (this.state === "known" || this.state === "asked")) {
      this.#ask();
    }
  };

  async #ask() {
    if (this.#isAsking) {
      return;
    }
    this.#isAsking = true;
    clearTimeout(this.#timer);
    try {
      await this.#request();
    } catch {
      // The server is away, which the connection shows.
    }
    this.#isAsking = false;
    if (this.state !== "absent" && !this.#closed.signal.aborted) {
      const wait = this.#isHasty ? SOON : EVERY * (0.8 + 0.4 * Math.random());
      this.#timer = setTimeout(() => document.visibilityState === "visible" && this.#ask(), wait);
    }
  }

  async #request() {
    const signal = AbortSignal.any([this.#closed.signal, AbortSignal.timeout(ANSWER_WITHIN)]);
    const response = await fetch(new URL("api/v1/instances", HERE.root), { headers: this.#session.headers, signal });
    if (response.status === 404) {
      this.#become("absent", new Map());
    } else if (response.ok) {
      this.#become("known", ordered((await response.json()).instances));
    }
  }

  #become(state, instances) {
    this.state = state;
    this.instances = instances;
    if (!this.#closed.signal.aborted) {
      this.#onChange();
    }
  }
}

function ordered(instances) {
  return new Map(
    instances
      .filter((one) => typeof one.instance === "string")
      .sort((a, b) => (a.instance < b.instance ? -1 : 1))
      .map((one) => [one.instance, one]),
  );
}

/** How an appliance is, as a word, an icon and a tone. `isWell` is false if something is wrong. Pure. */
export function healthOf(one, now) {
  const seen = moment(one.last_seen);
  if (one.online === null) {
    return { isWell: false, word: "not known yet", shape: "alert", tone: "warn" };
  }
  if (!one.online) {
    const word = seen === null ? "never seen" : `silent for ${brief(now - seen)}`;
    return { isWell: false, word, shape: "cross", tone: "bad" };
  }
  if (one.database === "down") {
    return { isWell: false, word: "database not read", shape: "alert", tone: "warn" };
  }
  if (one.database === "stale") {
    return { isWell: false, word: "database not read in full", shape: "alert", tone: "warn" };
  }
  if (one.unwritten_seconds >= UNWRITTEN_AFTER) {
    return { isWell: false, word: `not written for ${brief(one.unwritten_seconds * 1000)}`, shape: "alert", tone: "warn" };
  }
  if (one.error) {
    return { isWell: false, word: "degraded", shape: "alert", tone: "warn" };
  }
  return { isWell: true, word: "live", shape: "dot", tone: "good" };
}
