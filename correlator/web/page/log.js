/** The log of a job: its lines, and what selects them: level, step, a text, and the address of one line. */

import { Component, CopyButton, createRef, html, icon, marked } from "./html.js";
import { Layout } from "./layout.js";
import { LogFeed } from "./log_feed.js";
import { keep, kept } from "./preferences.js";
import { logAddress } from "./route.js";
import { fetchJson, withTicket } from "./session.js";
import { stepsOf } from "./step_order.js";
import { dayOf, inUtc, moment, shortTime } from "./times.js";
import { LEVELS, counted, isolated, levelTone, named, stepTitle, text } from "./words.js";

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
  /** The text that is in the address because it was typed. */
  #typedText = "";

  constructor(props) {
    super(props);
    this.state = { wrap: kept("wrap") !== "no" };
  }

  componentDidMount() {
    this.#search.current.value = this.#typedText = this.props.chosen.q;
  }

  componentDidUpdate({ chosen: before }) {
    const { q } = this.props.chosen;
    if (q !== before.q && q !== this.#typedText) {
      clearTimeout(this.#timer);
      this.#search.current.value = this.#typedText = q; // a link shows a line among its neighbours
    }
  }

  componentWillUnmount() {
    clearTimeout(this.#timer);
  }

  #typed = () => {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#typedText = this.#search.current.value.trim();
      this.props.onChoose({ q: this.#typedText });
    }, TYPING);
  };

  #wrap = () => {
    const wrap = !this.state.wrap;
    keep("wrap", wrap ? "yes" : "no");
    this.setState({ wrap });
  };

  render({ id, instance, job, chosen, onChoose, target, session, connection }, { wrap }) {
    const { level, step, q } = chosen;
    const query = { level, ...(step !== "" && { step }), ...(q !== "" && { q }) };
    const steps = stepsOf(job);
    const link = target === null ? null : new URL(logAddress(id, instance, target, { level }), location.href).href;
    return html`<section class="log" aria-labelledby="log-title">
      <div class="log-head">
        <h2 id="log-title">Log</h2>
        <label class="choice"><span class="soft">From level</span>
          <select value=${level} onChange=${(event) => onChoose({ level: event.currentTarget.value })}>
            ${LEVELS.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}
          </select>
        </label>
        ${
          steps.length > 0 &&
          html`<label class="choice"><span class="soft">Step</span>
          <select value=${step} onChange=${(event) => onChoose({ step: event.currentTarget.value })}>
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
          <a class="tool" ...${withTicket(session, requestOf(session, job, "/log", query))} download>
            Download</a>
        </span>
      </div>
      <${Lines} key=${`${job.job_id} ${level} ${step} ${q}`} id=${id} instance=${instance} job=${job} session=${session} query=${query}
        connection=${connection} target=${step === "" && q === "" ? target : null} wrap=${wrap} onAllLevels=${() => onChoose({ level: "DEBUG" })} />
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
    return requestOf(this.props.session, this.props.job, "/events", query);
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
        location.replace(this.#link(lines[next].event_id));
      }
    }
  };

  /** A line among its neighbours, at the chosen level. */
  #link = (event) => {
    const { id, instance, query } = this.props;
    return logAddress(id, instance, event, { level: query.level });
  };

  render({ job, query, session, target, wrap }) {
    const feed = this.#feed;
    const { following, unseen } = feed;
    const step = (line) => stepTitle(job.steps?.[line.step_id]);
    const paused = job.terminal ? "Go to the end" : "Paused";
    const end = job.terminal ? "" : " – resume";
    return html`<p class="soft log-notes">${this.#notes()}</p>
      <div class="log-frame">
        <${LogList} handle=${this.#list} lines=${feed.window.lines} loading=${feed.loading} wrap=${wrap} target=${target} step=${step}
          following=${following} day=${dayOf(session.clock.now())} text=${query.q ?? ""}
          address=${this.#link} empty=${this.#empty()}
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
    const { dropped, trouble, incomplete, loading, loaded, window } = this.#feed;
    const { target } = this.props;
    const missing = target !== null && loaded && loading === "" && !window.has(target) && trouble === null;
    return [
      loading === "earlier" && window.lines.length > 0 && "Reading earlier lines…",
      missing && `Line ${target} is not among these lines`,
      dropped > 0 && `${counted(dropped, "line")} came too fast for this browser and were read again`,
      trouble !== null && `Lines are missing: ${trouble}`,
      incomplete !== null && `Lines may be missing: ${incomplete}`,
    ]
      .filter(Boolean)
      .join(" · ");
  }
}

function requestOf(session, job, below, query) {
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

// -- The lines of a log in a pane that scrolls: only those in sight are in the document. What is in sight stays there.

const NEAR = 24;
/** Pixels from the end within which the log counts as scrolled to the end. */
const BEYOND = 800;
/** Pixels outside the pane in which lines are drawn, and from which further lines are read. */
const ESTIMATE = 21;

class LogList extends Component {
  #pane = createRef();
  #list = createRef();
  #layout = new Layout(ESTIMATE);
  #anchor = null;
  #revealed = null;
  #width = 0;
  /** Where the pane was when the list last set or read that: another position comes from the user. */
  #at = 0;
  /** True or false if the user has scrolled, to the end or elsewhere, and `onScroll` has not been called for it yet. */
  #isBottom = null;
  #observer = new ResizeObserver(() => this.#resized());

  constructor(props) {
    super(props);
    this.state = { top: 0, height: 600 };
  }

  /** `handle.current` becomes this component: a `ref` of a component would be one of its properties. */
  componentDidMount() {
    this.props.handle.current = this;
    this.#observer.observe(this.#pane.current);
    this.componentDidUpdate({});
  }

  componentWillUnmount() {
    this.#observer.disconnect();
  }

  componentDidUpdate(before) {
    if (before.wrap !== undefined && before.wrap !== this.props.wrap) {
      this.#layout.clear();
    }
    const changed = this.#measure();
    if (changed) {
      this.#layout.arrange(this.props.lines.map(idOf));
    }
    this.#place();
    this.#report();
    // A request of `#see` is refused while another one is in progress: when that is over, it is repeated.
    if (changed || before.lines !== this.props.lines || before.loading !== this.props.loading) {
      this.#see();
    }
  }

  /** Scrolls to the end if it is followed, to a line that is to be revealed, or back to what was in sight. */
  #place() {
    const { following, target } = this.props;
    const pane = this.#pane.current;
    if (target !== this.#revealed && (target === null || this.#layout.top(target) !== null)) {
      this.#revealed = target;
      this.#anchor = target === null ? this.#anchor : { id: target, below: -Math.round(pane.clientHeight / 3) };
    }
    if (following && this.#isBottom === null) {
      this.#scroll(pane.scrollHeight);
    } else if (this.#anchor !== null) {
      const top = this.#layout.top(this.#anchor.id);
      if (top !== null) {
        this.#scroll(top + this.#anchor.below);
      }
    }
    this.#at = pane.scrollTop;
  }

  #scroll(top) {
    const pane = this.#pane.current;
    if (Math.abs(pane.scrollTop - top) >= 1) {
      pane.scrollTop = top;
    }
  }

  /** Keeps in sight what the user has scrolled to. Its event comes with the next frame: lines may be drawn before. */
  #check() {
    const { scrollTop: top, scrollHeight, clientHeight } = this.#pane.current;
    const lowest = scrollHeight - clientHeight;
    if (Math.abs(top - this.#at) < 1) {
      return;
    }
    const isCut = this.#at > lowest + 1 && top > lowest - 1;
    this.#at = top;
    if (isCut) {
      return; // by the browser, as there is less to show
    }
    const id = this.#layout.at(top);
    if (id !== undefined) {
      this.#anchor = { id, below: top - this.#layout.top(id) };
    }
    this.#isBottom = lowest - top < NEAR;
  }

  #report() {
    const isBottom = this.#isBottom;
    this.#isBottom = null;
    if (isBottom !== null) {
      this.props.onScroll(isBottom);
    }
  }

  /** Measures the lines that are drawn. True if a height was another one than assumed. */
  #measure() {
    let changed = false;
    for (const item of this.#list.current?.children ?? []) {
      changed = this.#layout.measured(Number(item.dataset.id), item.getBoundingClientRect().height) || changed;
    }
    return changed;
  }

  #resized() {
    const { clientWidth: width } = this.#pane.current;
    if (width !== this.#width) {
      this.#width = width;
      this.#layout.clear();
    }
    this.#see();
  }

  /** Draws the lines that are in sight now, and asks for more where the window ends. */
  #see() {
    const { scrollTop: top, clientHeight: height } = this.#pane.current;
    this.setState({ top, height });
    if (top < BEYOND) {
      this.props.onStart();
    }
    if (this.#layout.height - top - height < BEYOND) {
      this.props.onEnd();
    }
  }

  #scrolled = () => {
    if (this.#pane.current === null) {
      return; // The event comes with the next frame: other lines may have taken the place of these.
    }
    this.#check();
    this.#report();
    this.#see();
  };

  #key = (event) => {
    if (event.target !== this.#pane.current || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const move = { Home: "start", End: "end", j: "next", k: "previous" }[event.key];
    if (move !== undefined) {
      event.preventDefault();
      this.props.onMove(move, this.#layout.at(this.#pane.current.scrollTop + 1));
    }
  };

  /** Scrolls the page to the pane. */
  intoView() {
    this.#pane.current?.scrollIntoView({ block: "nearest" });
  }

  /** Shows the first line, also of lines that come later. */
  toStart() {
    this.#anchor = null;
    this.#at = 0;
    this.#pane.current.scrollTop = 0;
  }

  focus() {
    this.#pane.current?.focus();
  }

  render({ lines, wrap, target, step, day, address, text, empty }, { top, height }) {
    const isOld = lines.length > 0 && dayOf(moment(lines[0].at)) !== day;
    if (this.#pane.current !== null) {
      this.#check(); // before the lines get other places
    }
    this.#layout.arrange(lines.map(idOf));
    const { first, end, above, below } = this.#layout.between(top - BEYOND, top + height + BEYOND);
    return html`<div class="log-pane ${wrap ? "" : "is-unwrapped"} ${isOld ? "is-dated" : ""}" ref=${this.#pane} onScroll=${this.#scrolled}
      onKeyDown=${this.#key} tabindex="0" role="region" aria-label="Log lines">
      ${
        lines.length === 0
          ? html`<p class="nothing soft">${empty}</p>`
          : html`<ol ref=${this.#list} style=${{ paddingTop: `${above}px`, paddingBottom: `${below}px` }}>
            ${lines.slice(first, end).map(
              (line) => html`<${LogLine} key=${line.event_id} line=${line} step=${step(line)} day=${day} text=${text}
                address=${address(line.event_id)} isTarget=${line.event_id === target} />`,
            )}</ol>`
      }
    </div>`;
  }
}

function idOf({ event_id: id }) {
  return id;
}

// -- One line of a log: its time, which is its link, level, step, message and attributes.

const IDENTITY = new Set(["job_id", "step_id", "external_job_id", "step_name"]);
/** Attributes that name the job and step of a line, which the page shows already. */

class LogLine extends Component {
  shouldComponentUpdate(next) {
    return ["step", "day", "text", "address", "isTarget"].some((name) => next[name] !== this.props[name]);
  }

  render({ line, step, day, text: wanted, address, isTarget }) {
    const at = moment(line.at);
    return html`<li class="line tone-line-${levelTone(line.level)} ${isTarget ? "is-target" : ""}"
      data-id=${line.event_id} aria-current=${isTarget ? "true" : null}>
      <a class="line-at" href=${address} tabindex=${isTarget ? 0 : -1}
        title="${inUtc(line.at)}: link to this line">${shortTime(at, day)}</a>
      <span class="line-level tone-${levelTone(line.level)}">${text(line.level)}</span>
      <span class="line-text">${step !== "" && html`<span class="line-step">${named(step)}</span> `}${marked(text(line.message), wanted)}
        ${" "}<span class="line-attrs">${marked(attributes(line.attrs), wanted)}</span></span>
    </li>`;
  }
}

/** The attributes of a line as text. */
export function attributes(attrs) {
  if (attrs === null || typeof attrs !== "object") {
    return text(attrs);
  }
  return Object.entries(attrs)
    .filter(([name, value]) => !IDENTITY.has(name) && text(value) !== "")
    .map(([name, value]) => `${isolated(text(name))}=${isolated(text(value))}`)
    .join("  ");
}
