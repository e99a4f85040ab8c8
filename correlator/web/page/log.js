/** The log of a job: its lines, and what selects them: level, step, a text, and the address of one line. */

import { Component, createRef, html } from "./html.js";
import { icon } from "./icons.js";
import { CopyButton } from "./ids.js";
import { LogFeed } from "./log_feed.js";
import { attributes } from "./log_line.js";
import { LogList } from "./log_list.js";
import { keep, kept } from "./preferences.js";
import { fetchJson, withTicket } from "./requests.js";
import { lineAddress } from "./route.js";
import { stepsOf } from "./steps.js";
import { dayOf } from "./times.js";
import { LEVELS, counted, stepTitle } from "./words.js";

const PAGE = "500";
const MOST_CHOICES = 500;
/** Steps in the menu. */
const TYPING = 300;
/** Milliseconds after the last key until the log is searched. */
const AGAIN = 2000;
/** Milliseconds until a failed request is repeated. */

export class LogPane extends Component {
  #timer = 0;
  #search = createRef();

  constructor(props) {
    super(props);
    this.state = { level: "INFO", text: "", wrap: kept("wrap") !== "no" };
  }

  componentDidUpdate(before) {
    const { target, step, onStep } = this.props;
    if (target !== null && target !== before.target && (this.state.text !== "" || step !== "")) {
      this.#clear(); // its link shows a line among its neighbours
      onStep("");
    }
  }

  componentWillUnmount() {
    clearTimeout(this.#timer);
  }

  #typed = () => {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.setState({ text: this.#search.current.value.trim() }), TYPING);
  };

  #clear() {
    clearTimeout(this.#timer);
    this.#search.current.value = "";
    this.setState({ text: "" });
  }

  #wrap = () => {
    const wrap = !this.state.wrap;
    keep("wrap", wrap ? "yes" : "no");
    this.setState({ wrap });
  };

  render({ id, instance, job, step, onStep, target, session, connection }, { level, text: sought, wrap }) {
    const query = { level, ...(step !== "" && { step }), ...(sought !== "" && { q: sought }) };
    const steps = stepsOf(job);
    const link = target === null ? null : new URL(lineAddress(id, instance, target), location.href).href;
    return html`<section class="log" aria-labelledby="log-title">
      <div class="log-head">
        <h2 id="log-title">Log</h2>
        <label class="choice"><span class="soft">From level</span>
          <select value=${level} onChange=${(event) => this.setState({ level: event.currentTarget.value })}>
            ${LEVELS.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}
          </select>
        </label>
        ${
          steps.length > 0 &&
          html`<label class="choice"><span class="soft">Step</span>
          <select value=${step} onChange=${(event) => onStep(event.currentTarget.value)}>
            <option value="">All</option>
            ${choices(steps, step).map((one) => html`<option key=${one.id} value=${one.id}>${stepTitle(one)}</option>`)}
          </select>
        </label>`
        }
        <input type="search" class="log-search" ref=${this.#search} onInput=${this.#typed} maxlength="200"
          placeholder="Search the log" aria-label="Search the log" autocomplete="off" />
        <span class="log-tools">
          <button type="button" class="tool" aria-pressed=${String(wrap)} onClick=${this.#wrap}>Wrap</button>
          ${link !== null && html`<${CopyButton} className="tool" value=${link} label="Copy the link to the marked line">Copy link to line</${CopyButton}>`}
          <a class="tool" ...${withTicket(session, logAddress(session, job, "/log", query))} download>
            Download</a>
        </span>
      </div>
      <${Lines} key=${`${job.job_id} ${level} ${step} ${sought}`} id=${id} instance=${instance} job=${job} session=${session} query=${query}
        connection=${connection} target=${step === "" && sought === "" ? target : null} wrap=${wrap} onAllLevels=${() => this.setState({ level: "DEBUG" })} />
    </section>`;
  }
}

/** The newest steps, and the chosen one: the others are chosen among the steps themselves. */
function choices(steps, chosen) {
  return steps.filter(({ id }, place) => place >= steps.length - MOST_CHOICES || id === chosen);
}

/** The lines that `query` selects. Another query makes another component. */
class Lines extends Component {
  #list = createRef();
  #closed = new AbortController();
  #subscription = null;
  #feed = new LogFeed(
    (place) =>
      fetchJson(this.props.session, this.#address({ ...this.props.query, limit: PAGE, ...place }), this.#closed.signal),
    () => this.#changed(),
  );
  #retry = 0;

  componentDidMount() {
    this.#follow();
    const { target } = this.props;
    if (target === null) {
      this.#feed.openEnd();
    } else {
      this.#show(target);
    }
  }

  componentDidUpdate(before) {
    const { connection, target } = this.props;
    if (before.connection.state !== "live" && connection.state === "live") {
      this.#feed.catchUp();
      this.#catchUpSoon(); // A daemon that has just started may not have read the newest rows yet.
    }
    if (target !== null && target !== before.target) {
      this.#show(target);
    }
  }

  componentWillUnmount() {
    clearTimeout(this.#retry);
    this.#closed.abort();
    this.#feed.close();
    this.#subscription?.close();
  }

  /** Draws the lines; a request that has failed is repeated, as the daemon may be starting. */
  #changed() {
    if (this.#feed.trouble !== null) {
      this.#catchUpSoon();
    }
    this.setState({});
  }

  #catchUpSoon() {
    if (this.#retry === 0 && !this.#closed.signal.aborted) {
      this.#retry = setTimeout(() => {
        this.#retry = 0;
        this.#feed.catchUp();
      }, AGAIN);
    }
  }

  #address(query) {
    return logAddress(this.props.session, this.props.job, "/events", query);
  }

  #follow() {
    const { job, query, session } = this.props;
    this.#subscription = session.client.subscribe(job.job_id, () => {}, {
      logs: query.level,
      onLog: (lines, dropped) =>
        this.#feed.live(
          lines.filter((line) => line.job_id === job.job_id && matches(line, query)),
          dropped,
        ),
    });
  }

  /** Shows a line, with all levels if it has a lower one. */
  async #show(target) {
    this.#feed.following = false;
    if (!this.#feed.window.has(target) && !(await this.#feed.openAt(target))) {
      return;
    }
    if (this.#closed.signal.aborted || this.props.target !== target) {
      return;
    }
    if (!this.#feed.window.has(target) && this.#feed.trouble === null && this.props.query.level !== "DEBUG") {
      this.props.onAllLevels();
    }
    this.setState({}, () => this.#list.current?.intoView());
  }

  #scrolled = (isBottom) => {
    const following = isBottom && this.#feed.atEnd;
    if (following !== this.#feed.following) {
      this.#feed.following = following;
      this.#feed.unseen = 0;
      this.setState({});
    }
  };

  #resume = async () => {
    this.#list.current?.focus();
    if (this.#feed.atEnd) {
      this.#feed.following = true;
      this.#feed.unseen = 0;
      this.setState({});
    } else {
      await this.#feed.openEnd();
    }
    this.#list.current?.intoView(); // It may have become higher with its lines.
  };

  /** Moves to an end of the log, or selects the line beside the selected one. */
  #move = async (where, first) => {
    if (where === "end") {
      this.#resume();
    } else if (where === "start") {
      this.#list.current.toStart();
      await this.#feed.openStart();
      this.#list.current?.intoView();
    } else {
      const { lines } = this.#feed.window;
      const at = lines.findIndex((line) => line.event_id === this.props.target);
      const next = at === -1 ? lines.findIndex((line) => line.event_id === first) : at + (where === "next" ? 1 : -1);
      if (lines[next] !== undefined) {
        location.replace(lineAddress(this.props.id, this.props.instance, lines[next].event_id));
      }
    }
  };

  render({ id, instance, job, query, session, target, wrap }) {
    const feed = this.#feed;
    const { following, unseen } = feed;
    const step = (line) => stepTitle(job.steps?.[line.step_id]);
    const paused = job.terminal ? "Go to the end" : "Paused";
    const end = job.terminal ? "" : " – resume";
    return html`<p class="soft log-notes">${this.#notes()}</p>
      <div class="log-frame">
        <${LogList} handle=${this.#list} lines=${feed.window.lines} loading=${feed.loading} wrap=${wrap} target=${target} step=${step}
          following=${following} day=${dayOf(session.clock.now())} text=${query.q ?? ""}
          address=${(event) => lineAddress(id, instance, event)} empty=${this.#empty()}
          onStart=${() => feed.earlier()} onEnd=${() => feed.later()} onScroll=${this.#scrolled} onMove=${this.#move} />
        ${
          !following &&
          html`<button type="button" class="resume" onClick=${this.#resume}>
          ${icon(job.terminal ? "ahead" : "pause")} ${paused}${unseen > 0 ? `, ${counted(unseen, "new line")}` : ""}${end}</button>`
        }
      </div>`;
  }

  #empty() {
    const { loaded, loading } = this.#feed;
    if (!loaded || loading !== "") {
      return "Loading the lines…";
    }
    const { step, q } = this.props.query;
    if (this.props.job.source === "legacy" && step === undefined && q === undefined) {
      return "The old failover tracker writes no log lines.";
    }
    return step === undefined && q === undefined ? "No line at this level." : "No line matches.";
  }

  #notes() {
    const { dropped, trouble, loading, loaded, window } = this.#feed;
    const { target } = this.props;
    const missing = target !== null && loaded && loading === "" && !window.has(target) && trouble === null;
    return [
      loading === "earlier" && window.lines.length > 0 && "Reading earlier lines…",
      missing && `Line ${target} is not among these lines`,
      dropped > 0 && `${counted(dropped, "line")} came too fast for this browser and were read again`,
      trouble !== null && `Lines are missing: ${trouble}`,
    ]
      .filter(Boolean)
      .join(" · ");
  }
}

function logAddress(session, job, below, query) {
  const address = session.job(job.job_id, below);
  for (const [name, value] of Object.entries(query)) {
    address.searchParams.set(name, String(value));
  }
  return address;
}

/** True if a live line is one that the daemon would select for this query; its level has been selected already. */
function matches(line, { step, q = "" }) {
  const sought = q.toLowerCase();
  return (
    (step === undefined || String(line.step_id) === step) &&
    (sought === "" || [line.message, attributes(line.attrs)].some((part) => part.toLowerCase().includes(sought)))
  );
}
