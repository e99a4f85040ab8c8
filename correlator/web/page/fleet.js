/**
 * The appliances of a gateway and their health, requested from time to time while the page is visible, and at once when
 * the state of the connection's source changes: many pages may be open.
 *
 * A daemon without a cluster has none: nothing is requested until something names an appliance.
 */

import { Component, html, icon } from "./html.js";
import { HERE, baseOf, isGateway } from "./route.js";
import { brief, inUtc, moment, shortTime } from "./times.js";
import { counted, text } from "./words.js";

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

// -- The appliances of a fleet: chips that filter the list by them, a table of their health, a banner for silent ones.

const MOST_CHIPS = 12;
/** With more appliances, those that are well have no chip; the table has all. */
const MOST_NAMES = 3;
/** Names of silent appliances in the banner. */

/** The part of the filters that chooses appliances. `counts`: jobs by instance. `onChoose(instances)`. */
export class Appliances extends Component {
  #toggle = (name) => {
    const { chosen, onChoose } = this.props;
    onChoose(chosen.includes(name) ? chosen.filter((each) => each !== name) : [...chosen, name].sort());
  };

  #unfold = () => {
    const open = this.state.open !== true;
    this.props.fleet.isHasty = open;
    this.setState({ open });
  };

  componentWillUnmount() {
    this.props.fleet.isHasty = false;
  }

  render({ fleet, counts, chosen, now }, { open }) {
    const all = everyOne(fleet, counts, chosen);
    const few = all.length <= MOST_CHIPS;
    const chips = all.filter(({ name, known }) => few || chosen.includes(name) || (known && !healthOf(known, now).isWell));
    const hidden = all.length - chips.length;
    return html`<div class="appliances">
      <div class="chips" role="group" aria-label="Appliance">
        ${chips.map(({ name, known }) => {
          const health = known === undefined ? null : healthOf(known, now);
          return html`<button type="button" key=${name} class="chip" aria-pressed=${String(chosen.includes(name))}
            title=${known === undefined ? undefined : details(known, now)} onClick=${() => this.#toggle(name)}>
            ${health !== null && icon(health.shape, health.tone)} ${name}
            ${health !== null && !health.isWell && html`<span class="tone-${health.tone}">${health.word}</span>`}
            <b>${counts.get(name) ?? 0}</b></button>`;
        })}
      </div>
      ${
        fleet.instances.size > 0 &&
        html`<button type="button" class="quiet-button fleet-more" aria-expanded=${String(open === true)}
        onClick=${this.#unfold}>
        ${hidden > 0 ? `and ${counted(hidden, "more appliance")}` : "Health"}</button>`
      }
      ${open === true && html`<${Table} fleet=${fleet} counts=${counts} now=${now} />`}
    </div>`;
  }
}

/** Every appliance that the gateway, a job or the address names, with what is known of its health. */
function everyOne(fleet, counts, chosen) {
  const names = new Set([...fleet.instances.keys(), ...counts.keys(), ...chosen]);
  return [...names].sort().map((name) => ({ name, known: fleet.instances.get(name) }));
}

function details(known, now) {
  const { word } = healthOf(known, now);
  return [known.instance, word, lag(known), version(known), text(known.error)]
    .filter((part) => part !== "")
    .join(" · ");
}

const DATABASE_WORDS = new Map([
  ["live", "is read"],
  ["stale", "is not read in full"],
  ["down", "is not read"],
]);

function database(known) {
  return known.online ? (DATABASE_WORDS.get(known.database) ?? text(known.database)) : "";
}

function lag({ online, database: state, lag_seconds: seconds }) {
  if (!online || state === "down" || !Number.isFinite(seconds)) {
    return "";
  }
  return seconds < 1 ? "up to date" : `for ${brief(seconds * 1000)}`;
}

function version(known) {
  return text(known.version) === "" ? "" : `version ${known.version}`;
}

function Table({ fleet, counts, now }) {
  const columns = ["Appliance", "Collector", "Database", "Lag", "Last seen", "Version", "Jobs"];
  return html`<div class="panel fleet-panel"><table class="runs" aria-label="Health of the appliances">
    <thead><tr>${columns.map((column) => html`<th scope="col" key=${column}>${column}</th>`)}</tr></thead>
    <tbody>${[...fleet.instances.values()].map((known) => {
      const health = healthOf(known, now);
      const problem = text(known.error);
      return html`<tr key=${known.instance}>
        <th scope="row"><a href=${baseOf(known.instance).href} title="The page of this appliance alone">${known.instance}</a></th>
        <td>${known.online ? icon("dot", "good") : icon(health.shape, health.tone)} ${known.online ? "online" : health.word}</td>
        <td>${database(known) || "unknown"}${problem !== "" && html` <span class="soft">${problem}</span>`}</td>
        <td>${lag(known) || "unknown"}</td>
        <td title=${inUtc(known.last_seen)}>${shortTime(moment(known.last_seen), now) || "never"}</td>
        <td>${text(known.version) || "unknown"}</td>
        <td>${counts.get(known.instance) ?? known.jobs ?? 0}</td></tr>`;
    })}</tbody></table></div>`;
}

/** A warning if the collectors of appliances are silent. `instance`: only of this one; "" is all. */
export function SilentBanner({ fleet, instance, now }) {
  const silent = [...fleet.instances.values()].filter(
    (known) => known.online === false && (instance === "" || known.instance === instance),
  );
  if (silent.length === 0) {
    return null;
  }
  const [first] = silent;
  const seen = moment(first.last_seen);
  const rest = silent.length - MOST_NAMES;
  const names = silent.slice(0, MOST_NAMES).map((known) => known.instance);
  const what =
    silent.length === 1
      ? html`<b>The collector of ${first.instance} is ${healthOf(first, now).word}.</b> ${
          seen === null
            ? "None of its jobs is known."
            : html`Its jobs are shown as of <b title=${inUtc(first.last_seen)}>${shortTime(seen, now)}</b>.`
        }`
      : html`<b>The collectors of ${counted(silent.length, "appliance")} are silent:</b> ${names.join(", ")}${
          rest > 0 && ` and ${rest} more`
        }. Their jobs are shown as of when each was last seen.`;
  return html`<div class="banner tone-banner-bad silent-banner" role="status">${icon("alert")} <span>${what}</span></div>`;
}

/** On the page of one appliance: its name, and the way to all of them. */
export function OwnAppliance({ fleet }) {
  if (HERE.instance === "" || fleet.state !== "known") {
    return null;
  }
  return html`<p class="own-appliance"><b>${HERE.instance}</b> <a href=${HERE.root.href}>All appliances</a></p>`;
}

/** In place of a view whose address names an appliance that the gateway does not know. `address`: on all of them. */
export class UnknownAppliance extends Component {
  componentDidMount() {
    this.props.fleet.isHasty = true;
  }

  componentWillUnmount() {
    this.props.fleet.isHasty = false;
  }

  render({ name, address }) {
    return html`<div class="waiting">
      <p><a class="back" href="#/">${icon("back")} All jobs</a></p>
      <h1 tabindex="-1">No appliance is named ${name}</h1>
      <p class="soft">Nothing has come from a collector of that name. This page goes on as soon as something does.</p>
      <p><a href=${address}>Search on all appliances</a></p>
    </div>`;
  }
}
