/** The log lines of a job: old ones from the daemon's history, new ones live. Scrolling up pauses the log. */

import { LogHistory } from "../client/log_history.js";
import { Component, createRef, html } from "./html.js";
import { icon } from "./icons.js";
import { Logbook } from "./logbook.js";
import { dayOf, inUtc, moment, shortTime } from "./times.js";
import { LEVELS, counted, levelTone, text } from "./words.js";

const NEAR = 24;
/** Pixels from the end within which the log counts as scrolled to the end. */
const IDENTITY = new Set(["job_id", "step_id", "external_job_id", "step_name"]);
/** Attributes that name the job and step of a line, which the page shows already. */

export class LogPane extends Component {
  #book = new Logbook();
  #pane = createRef();
  #subscription = null;
  #history = null;

  constructor(props) {
    super(props);
    this.state = { lines: [], following: true, fresh: 0, trouble: null, loaded: false };
  }

  componentDidMount() {
    this.#follow();
  }

  componentDidUpdate(before) {
    if (before.session !== this.props.session) {
      this.#history?.close();
      this.#subscription?.close();
      this.#follow();
    } else if (before.connection.state !== "live" && this.props.connection.state === "live") {
      // Log lines of an outage are not sent again: load them from the history.
      this.#load();
    }
    const pane = this.#pane.current;
    if (pane !== null && this.state.following) {
      pane.scrollTop = pane.scrollHeight;
    }
  }

  componentWillUnmount() {
    this.#history?.close();
    this.#history = null;
    this.#subscription?.close();
  }

  #follow() {
    const { job, level, session } = this.props;
    this.#history = new LogHistory(session.client, job.job_id, level, (lines) => this.#add(lines));
    this.#subscription = session.client.subscribe(job.job_id, () => {}, {
      logs: level,
      onLog: (lines, dropped) => {
        this.#book.dropped += dropped;
        this.#add(lines.filter((line) => line.job_id === job.job_id));
        if (dropped > 0) {
          this.#load();
        }
      },
    });
    this.#load();
  }

  #add(lines) {
    const { following } = this.state;
    const fresh = this.#book.add(lines, { keepAll: !following });
    this.setState((state) => ({ lines: this.#book.lines, fresh: state.following ? 0 : state.fresh + fresh }));
  }

  async #load() {
    const history = this.#history;
    try {
      const whole = await history.read();
      if (history === this.#history) {
        this.setState({ trouble: whole ? null : "the log is too long for this page", loaded: true });
      }
    } catch (error) {
      if (history === this.#history) {
        this.setState({ trouble: error instanceof Error ? error.message : String(error), loaded: true });
      }
    }
  }

  #scrolled = () => {
    const pane = this.#pane.current;
    const following = pane.scrollHeight - pane.scrollTop - pane.clientHeight < NEAR;
    if (following !== this.state.following) {
      this.setState({ following, fresh: 0 });
    }
  };

  #resume = () => {
    this.setState({ following: true, fresh: 0 });
    this.#pane.current?.focus();
  };

  render({ job, level, onLevel, session }, { lines, following, fresh, trouble, loaded }) {
    const day = dayOf(session.clock.now());
    const step = (line) => job.steps?.[line.step_id]?.name;
    const drawn = (line) => html`<${Line} key=${line.event_id} line=${line} step=${step(line)} day=${day} />`;
    return html`<section class="log" aria-labelledby="log-title">
      <div class="log-head">
        <h2 id="log-title">Log</h2>
        <label class="choice"><span class="soft">From level</span>
          <select value=${level} onChange=${(event) => onLevel(event.currentTarget.value)}>
            ${LEVELS.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}
          </select>
        </label>
        <p class="soft log-notes">${this.#notes(trouble)}</p>
      </div>
      <div class="log-frame">
        <div class="log-pane" ref=${this.#pane} onScroll=${this.#scrolled}
          tabindex="0" role="region" aria-label="Log lines">
          ${
            lines.length === 0
              ? html`<p class="nothing soft">${loaded ? "No line at this level." : "Loading the lines…"}</p>`
              : html`<ol>${lines.map(drawn)}</ol>`
          }
        </div>
        ${
          !following &&
          html`<button type="button" class="resume" onClick=${this.#resume}>
          ${icon("pause")} Paused${fresh > 0 ? `, ${counted(fresh, "new line")}` : ""} – resume</button>`
        }
      </div>
    </section>`;
  }

  #notes(trouble) {
    const { forgotten, dropped } = this.#book;
    return [
      forgotten > 0 && `${counted(forgotten, "older line")} not shown`,
      dropped > 0 && `${counted(dropped, "line")} dropped because the browser was too slow`,
      trouble !== null && `Older lines are missing: ${trouble}`,
    ]
      .filter(Boolean)
      .join(" · ");
  }
}

class Line extends Component {
  shouldComponentUpdate(next) {
    return next.step !== this.props.step || next.day !== this.props.day;
  }

  render({ line, step, day }) {
    const at = moment(line.at);
    return html`<li class="line tone-line-${levelTone(line.level)}">
      <span class="line-at" title=${inUtc(line.at)}>${shortTime(at, day)}</span>
      <span class="line-level tone-${levelTone(line.level)}">${text(line.level)}</span>
      <span class="line-text">${step !== undefined && html`<span class="line-step">${text(step)}</span> `}
        ${text(line.message)} ${" "}<span class="line-attrs">${attributes(line.attrs)}</span></span>
    </li>`;
  }
}

function attributes(attrs) {
  if (attrs === null || typeof attrs !== "object") {
    return text(attrs);
  }
  return Object.entries(attrs)
    .filter(([name, value]) => !IDENTITY.has(name) && text(value) !== "")
    .map(([name, value]) => `${name}=${text(value)}`)
    .join("  ");
}
