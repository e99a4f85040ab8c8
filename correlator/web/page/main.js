/** The page: it selects the view by the address, handles global keys, and re-renders every second. */

import { Fleet, OwnAppliance, SilentBanner, UnknownAppliance } from "./fleet.js";
import { Component, html, icon, render } from "./html.js";
import { JobPage } from "./job.js";
import { ListPage } from "./list.js";
import { keep, kept, theme, toggleTheme } from "./preferences.js";
import { HERE, entityAddress, failuresAddress, jobAddress, parse } from "./route.js";
import { Session } from "./session.js";
import { Banner, ConnectionState, Health, HealthBanner, Refused, markCounts, reload } from "./status.js";
import { fullTime, isUtc, useUtc, zoneName } from "./times.js";

const CLOCK_INTERVAL = 1000;

class Page extends Component {
  #unwatch = () => {};
  #health = new Health(
    () => this.state.session.headers,
    () => this.setState({}),
  );

  constructor() {
    super();
    useUtc(kept("utc") === "yes");
    const session = new Session();
    const route = parse(location.hash);
    const isOwn = route.instance === "" || route.instance === HERE.instance;
    this.state = {
      session,
      /** The session of the view: `session`, or one with the appliance that the address names. */
      active: isOwn ? session : new Session(route.instance, session.notices),
      fleet: new Fleet(session, this.#fleetChanged),
      route,
      connection: session.client.connection,
      now: session.clock.now(),
      theme: theme(),
      announcement: "",
      /** What `views.js` exports, or why it cannot be loaded. */
      views: null,
      trouble: "",
      isHelp: false,
    };
  }

  componentDidMount() {
    addEventListener("hashchange", this.#routed);
    addEventListener("keydown", this.#key);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.setState({ theme: theme() }));
    setInterval(() => this.setState({ now: this.state.active.clock.now() }), CLOCK_INTERVAL);
    this.state.fleet.open();
    this.#activate(this.state.session, this.state.route);
  }

  componentDidUpdate(_, before) {
    const { route, views } = this.state;
    const isSameJob =
      route.view === "job" && before.route.view === "job" && sameOf(route, before.route, ["id", "instance"]);
    const isDrawn = views !== before.views && ["entity", "failures"].includes(route.view);
    if (isDrawn || (route !== before.route && route.view !== "list" && !isSameJob)) {
      scrollTo(0, 0);
      document.querySelector("h1")?.focus();
    }
  }

  /** Loads the views that few people open. */
  #load = async () => {
    if (this.state.views === null && this.state.trouble === "") {
      try {
        this.setState({ views: await import("./views.js") });
      } catch (error) {
        this.setState({ trouble: error.message });
      }
    }
  };

  /** Shows a view with the session of its appliance. That session ends when the view has another one. */
  #activate(session, route) {
    const { active: before } = this.state;
    const instance = this.#isOwn(route.instance) ? "" : route.instance;
    if (instance !== "") {
      this.state.fleet.begin();
    }
    const kept = before !== this.state.session && before.instance === instance ? before : null;
    const active = instance === "" ? session : (kept ?? new Session(instance, session.notices));
    if (before !== active && before !== session) {
      before.close();
    }
    this.setState({ session, active, route, ...this.#connected(active) });
    this.#unwatch();
    this.#unwatch = active.client.onConnection(() => this.setState(this.#connected(active)));
  }

  /** The connection of a session as the page shows it, and the time there. */
  #connected(active) {
    const { fleet } = this.state;
    const isOfAll = active.instance === "" && HERE.instance === "" && fleet.state === "known";
    const connection = isOfAll ? fleet.shown(active.client.connection) : active.client.connection;
    active.clock.connected(connection);
    this.#health.connected(connection);
    return { connection, now: active.clock.now() };
  }

  /** True if the page's own session has the jobs of an appliance: it is of that one alone, or there is no fleet. */
  #isOwn(instance) {
    return instance === "" || instance === HERE.instance || this.state.fleet.state === "absent";
  }

  #fleetChanged = () => {
    const { session, active, route, fleet } = this.state;
    if (fleet.state === "absent" && active !== session) {
      this.#activate(session, route);
    } else {
      this.setState(this.#connected(active));
    }
  };

  #routed = () => {
    const route = parse(location.hash);
    if (route.view === "list") {
      this.state.session.left.address = location.hash || "#/";
    }
    this.#activate(this.state.session, route);
  };

  #key = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      this.#search();
    } else if (event.key === "?" && !typing) {
      this.#help();
    } else if (event.key === "u" && !typing) {
      this.#toggleZone();
    } else if (event.key === "l" && !typing) {
      document.querySelector(".log-pane")?.focus();
    } else if (event.key === "Escape" && event.target.closest("dialog")) {
      return; // it closes itself
    } else if (event.key === "Escape" && typing) {
      typing.blur();
    } else if (event.key === "Escape" && this.state.route.view !== "list") {
      location.hash = this.state.session.left.address;
    }
  };

  #search() {
    const focus = () => document.getElementById("search")?.focus();
    if (this.state.route.view === "list") {
      focus();
    } else {
      location.hash = this.state.session.left.address;
      addEventListener("hashchange", () => requestAnimationFrame(focus), { once: true });
    }
  }

  #enter = (token) => {
    const { session: before, active: shown, fleet: old, route } = this.state;
    old.close();
    const session = before.with(token);
    const active = shown === before ? session : shown.with(token);
    const fleet = new Fleet(session, this.#fleetChanged);
    session.notices.reconnect();
    this.setState({ session, active, fleet }, () => {
      fleet.open();
      this.#activate(session, route);
    });
  };

  /** All times are drawn again: the views are made anew, with the zone as their key. */
  #toggleZone = () => {
    useUtc(!isUtc());
    keep("utc", isUtc() ? "yes" : "no");
    this.setState({});
  };

  #help = () => {
    this.setState({ isHelp: true });
    this.#load();
  };

  #announce = (announcement) => this.setState({ announcement });

  #counted = (listing) => markCounts(listing, this.state.connection);

  /** True if the address names an appliance that the gateway does not know. */
  get #isUnknown() {
    const { route, fleet } = this.state;
    return fleet.state === "known" && route.instance !== "" && !fleet.instances.has(route.instance);
  }

  #view() {
    const { route, session, active, fleet, now, connection } = this.state;
    const { instance } = route;
    if (this.#isUnknown) {
      return html`<${UnknownAppliance} name=${instance} fleet=${fleet} address=${
        { job: jobAddress(route.id), entity: entityAddress(route.name) }[route.view] ?? failuresAddress("7d")
      } />`;
    }
    const given = { instance, session: active, now };
    switch (route.view) {
      case "job":
        return html`<${JobPage} key=${`${active.number} ${route.id}`} id=${route.id} line=${route.line} log=${route.log} ...${given}
          fleet=${fleet} connection=${connection} onAnnounce=${this.#announce} views=${this.state.views} onViews=${this.#load} />`;
      case "entity":
        return this.#later("EntityPage", `${active.number} ${route.name}`, { name: route.name, ...given });
      case "failures":
        return this.#later("FailuresPage", active.number, { fingerprint: route.fingerprint, since: route.since, ...given });
      default:
        return html`<${ListPage} key=${session.number} filter=${route.filter} session=${session} fleet=${fleet} now=${now}
          onCounts=${this.#counted} />`;
    }
  }

  /** A view of `views.js`, which is loaded now if it has not been. */
  #later(name, key, properties) {
    const { views, trouble } = this.state;
    if (views !== null) {
      return html`<${views[name]} key=${key} ...${properties} />`;
    }
    this.#load();
    return html`<p class="nothing" role="status">${trouble === "" ? "Loading…" : html`This view could not be loaded: ${trouble}.
      <a href="" onClick=${reload}>Load the page again</a>.`}</p>`;
  }

  /** What the connection of the view reports the state of. */
  #source() {
    const { route, fleet } = this.state;
    const instance = route.instance || HERE.instance;
    if (fleet.isSilent(instance)) {
      return "appliance";
    }
    return instance === "" && fleet.state === "known" ? "cluster" : "database";
  }

  render(_, { session, active, fleet, route, connection, now, announcement, ...state }) {
    const zone = zoneName(now);
    const other = state.theme === "dark" ? "light" : "dark";
    const source = this.#source();
    return html`
      <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
      <header class="top">
        <a class="brand" href=${session.left.address}>correlator</a>
        <${OwnAppliance} fleet=${fleet} />
        <p class="on-paper">${fullTime(now)} ${zone} · ${location.href}</p>
        ${!this.#isUnknown && html`<${ConnectionState} connection=${connection} of=${source} />`}
        <button type="button" class="quiet-button zone" onClick=${this.#toggleZone}
          title="Times are in ${zone}. Switch to ${isUtc() ? "your time zone" : "UTC"}.">${zone}</button>
        <button type="button" class="quiet-button" title="Keys" aria-label="Keys" onClick=${this.#help}><kbd aria-hidden="true">?</kbd></button>
        ${state.isHelp && state.views !== null && html`<${state.views.Help} onClose=${() => this.setState({ isHelp: false })} />`}
        <button type="button" class="quiet-button" title="Switch to ${other}" aria-label="Switch to ${other}"
          onClick=${() => this.setState({ theme: toggleTheme() })}>
          ${icon(state.theme === "dark" ? "sun" : "moon")}
        </button>
        <${HealthBanner} problems=${this.#health.problems} />
        <${SilentBanner} fleet=${fleet} instance=${route.instance || HERE.instance} now=${now} />
        ${!this.#isUnknown && html`<${Banner} connection=${connection} asOf=${active.clock.asOf} of=${source} />`}
      </header>
      <main id="main" key=${isUtc()} tabindex="-1" class=${connection.state === "live" ? "" : "is-old"}>
        ${connection.state === "refused" && html`<${Refused} connection=${connection} onToken=${this.#enter} />`}
        ${this.#view()}
      </main>
      <p class="unseen" role="status">${announcement}</p>`;
  }
}

function sameOf(one, other, members) {
  return members.every((member) => one[member] === other[member]);
}

/** Moves the focus without changing the address, which selects the view. */
function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

render(html`<${Page} />`, document.getElementById("page"));
