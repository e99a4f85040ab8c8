/** The page: it selects the view by the address, handles global keys, and re-renders every second. */

import { Banner, Refused, ConnectionState } from "./connection.js";
import { EntityPage } from "./entity.js";
import { Help } from "./help.js";
import { Component, createRef, html, render } from "./html.js";
import { icon } from "./icons.js";
import { JobPage } from "./job.js";
import { ListPage } from "./list.js";
import { markCounts } from "./marks.js";
import { keep, kept } from "./preferences.js";
import { parse } from "./route.js";
import { Session } from "./session.js";
import { theme, toggleTheme } from "./theme.js";
import { isUtc, useUtc, zoneName } from "./times.js";

const CLOCK_INTERVAL = 1000;

class Page extends Component {
  #unwatch = () => {};
  #help = createRef();

  constructor() {
    super();
    useUtc(kept("utc") === "yes");
    const session = new Session();
    this.state = {
      session,
      route: parse(location.hash),
      connection: session.client.connection,
      now: session.clock.now(),
      theme: theme(),
      announcement: "",
    };
  }

  componentDidMount() {
    addEventListener("hashchange", this.#routed);
    addEventListener("keydown", this.#key);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.setState({ theme: theme() }));
    setInterval(() => this.setState({ now: this.state.session.clock.now() }), CLOCK_INTERVAL);
    this.#watch(this.state.session);
  }

  componentDidUpdate(_, before) {
    const { route } = this.state;
    const isSameJob = route.view === "job" && before.route.view === "job" && route.id === before.route.id;
    if (route !== before.route && route.view !== "list" && !isSameJob) {
      scrollTo(0, 0);
      document.querySelector("h1")?.focus();
    }
  }

  #watch(session) {
    this.#unwatch();
    this.#unwatch = session.client.onConnection((connection) => {
      session.clock.connected(connection);
      this.setState({ connection, now: session.clock.now() });
    });
  }

  #routed = () => {
    const route = parse(location.hash);
    if (route.view === "list") {
      this.state.session.left.address = location.hash || "#/";
    }
    this.setState({ route });
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
      this.#help.current.open();
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
    this.state.session.close();
    const session = Session.with(token);
    this.setState({ session, connection: session.client.connection });
    this.#watch(session);
  };

  /** All times are drawn again: the views are made anew, with the zone as their key. */
  #toggleZone = () => {
    useUtc(!isUtc());
    keep("utc", isUtc() ? "yes" : "no");
    this.setState({});
  };

  #announce = (announcement) => this.setState({ announcement });

  #counted = (counts) => markCounts(counts, this.state.connection);

  #view(route, session, now, connection) {
    switch (route.view) {
      case "job":
        return html`<${JobPage} key=${route.id} id=${route.id} line=${route.line} session=${session} now=${now}
          connection=${connection} onAnnounce=${this.#announce} />`;
      case "entity":
        return html`<${EntityPage} key=${route.name} name=${route.name} session=${session} now=${now} />`;
      default:
        return html`<${ListPage} key="list" filter=${route.filter} session=${session} now=${now}
          onCounts=${this.#counted} />`;
    }
  }

  render(_, { session, route, connection, now, announcement, ...state }) {
    const zone = zoneName(now);
    const other = state.theme === "dark" ? "light" : "dark";
    return html`
      <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
      <header class="top">
        <a class="brand" href=${session.left.address}>correlator</a>
        <${ConnectionState} connection=${connection} />
        <button type="button" class="quiet-button zone" onClick=${this.#toggleZone}
          title="Times are in ${zone}. Switch to ${isUtc() ? "your time zone" : "UTC"}.">${zone}</button>
        <${Help} handle=${this.#help} />
        <button type="button" class="quiet-button" title="Switch to ${other}" aria-label="Switch to ${other}"
          onClick=${() => this.setState({ theme: toggleTheme() })}>
          ${icon(state.theme === "dark" ? "sun" : "moon")}
        </button>
        <${Banner} connection=${connection} asOf=${session.clock.asOf} />
      </header>
      <main id="main" key=${isUtc()} tabindex="-1" class=${connection.state === "live" ? "" : "is-old"}>
        ${connection.state === "refused" && html`<${Refused} connection=${connection} onToken=${this.#enter} />`}
        ${this.#view(route, session, now, connection)}
      </main>
      <p class="unseen" role="status">${announcement}</p>`;
  }
}

/** Moves the focus without changing the address, which selects the view. */
function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

render(html`<${Page} />`, document.getElementById("page"));
