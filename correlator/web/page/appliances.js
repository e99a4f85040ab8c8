/** The appliances of a fleet: chips that filter the list by them, a table of their health, a banner for silent ones. */

import { Component, html } from "./html.js";
import { icon } from "./icons.js";
import { HERE, baseOf } from "./place.js";
import { healthOf } from "./fleet.js";
import { brief, inUtc, moment, shortTime } from "./times.js";
import { counted, text } from "./words.js";

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
