/**
 * The list of jobs. Only the visible rows are in the DOM, so a thousand jobs cost as much as thirty.
 *
 * All rows have the same height in rem, so that the position of each can be computed.
 */

import { Appliances } from "./fleet.js";
import { Component, atOnce, bar, createRef, html, icon, marked } from "./html.js";
import { Listing, OLDER, foundBy, isChance, isUrgent } from "./listing.js";
import { Progress, comparison, liveliness, outlook } from "./outlook.js";
import { Seen } from "./preferences.js";
import { HERE, failuresAddress, idIn, jobAddress, listAddress, logAddress, replaceAddress } from "./route.js";
import { errorLine } from "./sentence.js";
import { FoundLines, JobSearch, LineSearch, Nothing, SearchProgress, entityNamed, together } from "./search.js";
import { dayOf, inUtc, isoDay, lasting, moment, periodOf, roughly, shortTime } from "./times.js";
import {
  LATENESS,
  STATUSES,
  counted,
  currentStepOf,
  operations,
  shownLateness,
  shownStatus,
  subject,
  text,
  vmOf,
} from "./words.js";

const SPARE = 8;
/** Rows rendered above and below the window, for quick scrolling and for the keyboard. */
const MOST_PRINTED = 1000;
/** Rows on paper. */
const CONSTRUCTED = /-\d{10}$|^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i;
/** The IDs of GUIs, which end in a Unix second, and UUIDs. */
const HEX = /^[\da-f]+$/i;
/** A text that a random ID may have. */
const HELD = 10_000;
/** Milliseconds after a movement of the pointer over the rows in which no row moves by itself. */
const NARROW = "(max-width: 46rem)";

export class ListPage extends Component {
  #listing = new Listing();
  #rows = createRef();
  /** The rows as they are drawn, by their IDs; until `#heldTo` only another choice of the user replaces them. */
  #shown = [];
  #heldTo = 0;
  #wanted = null;
  #selected = -1;
  /** The place of the selected row when it was drawn last. */
  #seen = new Seen();
  #search = new JobSearch(() => this.setState({}, this.#openFirst));
  #logs = new LineSearch(() => this.setState({}, this.#openFirst));
  #entered = null;
  /** The text at which Enter was pressed before anything was found. */
  #filter = null;
  #jobs = new Map();
  #given = { seen: this.#seen.ids, found: this.#search.found };

  constructor(props) {
    super(props);
    this.state = { update: props.session.list(this.#onUpdate), from: 0, to: 40, cursor: props.session.left.cursor };
    this.#renew(this.state.update.jobs, null, props);
  }

  /** Updates the listing; returns all jobs that it may show. */
  #renew(live, changed, { filter, now }) {
    const jobs = together(live, this.#search.found);
    const before = this.#given;
    if (this.#given.seen !== this.#seen.ids || this.#given.found !== this.#search.found) {
      this.#given = { seen: this.#seen.ids, found: this.#search.found };
    }
    this.#listing.update(jobs, changed, filter, now, this.#given);
    if (this.#filter !== filter || this.#given !== before || performance.now() >= this.#heldTo) {
      this.#shown = this.#listing.shown;
    }
    this.#filter = filter;
    if (this.#listing.instances.size > 0) {
      this.props.fleet.begin();
    }
    return jobs;
  }

  #onUpdate = (update) => {
    this.props.session.clock.documentsChanged(update.changed);
    this.#renew(update.jobs, update.changed, this.props);
    this.props.onCounts(this.#listing);
    this.setState({ update });
  };

  componentDidMount() {
    addEventListener("scroll", this.#measure, { passive: true });
    addEventListener("resize", this.#measure);
    addEventListener("keydown", this.#key);
    addEventListener("beforeprint", this.#printed);
    addEventListener("afterprint", this.#measure);
    this.#seen.watch(() => this.setState({}, () => this.props.onCounts(this.#listing)));
    this.#ask();
    const { left } = this.props.session;
    scrollTo(0, left.scrolled);
    this.#wanted = left.cursor;
    this.#measure();
    this.props.onCounts(this.#listing);
  }

  componentWillUnmount() {
    removeEventListener("scroll", this.#measure);
    removeEventListener("resize", this.#measure);
    removeEventListener("keydown", this.#key);
    removeEventListener("beforeprint", this.#printed);
    removeEventListener("afterprint", this.#measure);
    this.#seen.unwatch();
    this.#search.close();
    this.#logs.close();
    this.props.session.unlist(this.#onUpdate);
  }

  #ask() {
    const { filter, session } = this.props;
    const period = periodOf(filter).map((at) => (at === null ? "" : new Date(at).toISOString()));
    this.#search.ask(filter.q, filter.instance, period, session);
    this.#logs.ask(filter.q, filter.instance, period, session);
  }

  #more = () => {
    this.#search.more(this.props.session);
  };

  #moreLines = () => {
    this.#logs.more(this.props.session);
  };

  #lines = () => {
    const { filter } = this.props;
    changeFilter(filter, { in: filter.in === "" ? "log" : "" });
  };

  /** Opens or reveals what an earlier Enter asked for, once the search has found a job or ended. */
  #openFirst = () => {
    if (this.#entered !== null && this.#entered === this.props.filter.q.trim()) {
      this.#enter();
    }
  };

  /**
   * Enter in the search box: opens the job of an ID, also of one that is not known yet, and a job that is the only one;
   * else goes to the first row. If no job has the text, but for a short one that is in its ID by chance, it opens the
   * newest line that has it. While nothing is found, or only such jobs, it waits for the search, except for the text of an
   * ID.
   */
  #enter = () => {
    const q = this.props.filter.q.trim();
    if (q === "") {
      return;
    }
    const jobs = this.#renew(this.state.update.jobs, new Set(), this.props);
    const shown = this.#shown;
    const line = this.#logs.lines.find((each) => each.job_id !== null);
    if (line !== undefined && !CONSTRUCTED.test(q) && (this.#isLines || shown.every((id) => isChance(jobs.get(id), q)))) {
      location.hash = logAddress(line.job_id, line.instance, line.event_id, {});
      return;
    }
    const exact = shown.find((id) => id === q || jobs.get(id).external_ids?.includes(q));
    const isByChance = exact === undefined && HEX.test(q) && shown.length > 0 && shown.every((id) => isChance(jobs.get(id), q));
    const search = isByChance ? this.#logs : this.#search;
    const waits = (isByChance || shown.length === 0) && search.state === "searching" && !CONSTRUCTED.test(q);
    this.#entered = waits ? q : null;
    if (waits) {
      search.hurry(this.props.session);
    } else if (exact !== undefined || (shown.length <= 1 && !isByChance)) {
      const id = exact ?? shown[0];
      location.hash = jobAddress(exact === undefined ? (id ?? q) : q, id === undefined ? "" : jobs.get(id).instance);
    } else {
      this.#go(shown[0]);
    }
  };

  componentDidUpdate() {
    this.#ask();
    if (this.#wanted !== null) {
      const link = this.#link(this.#wanted);
      if (link !== null) {
        this.#wanted = null;
        link.focus({ preventScroll: true });
      }
    }
    this.#follow();
  }

  /** Keeps the row with the focus in sight when jobs above it come and go, unless it was scrolled out of sight. */
  #follow() {
    const before = this.#selected;
    this.#selected = this.#shown.indexOf(this.state.cursor);
    const hasMoved = before >= 0 && before !== this.#selected && this.#link(this.state.cursor) === document.activeElement;
    if (hasMoved && Math.abs(this.#hidden(before)) <= this.#height) {
      this.#reveal(this.#selected);
    }
  }

  #link(id) {
    return this.#rows.current?.querySelector(`[data-job="${CSS.escape(id ?? "")}"]`) ?? null;
  }

  get #height() {
    const rem = Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
    return Math.round(rem * (matchMedia(NARROW).matches ? 5 : 3.25));
  }

  #measure = () => {
    const list = this.#rows.current;
    if (list === null) {
      return;
    }
    const above = -list.getBoundingClientRect().top;
    const from = Math.max(0, Math.floor(above / this.#height) - SPARE);
    const to = Math.ceil((above + innerHeight) / this.#height) + SPARE;
    this.props.session.left.scrolled = scrollY;
    if (from !== this.state.from || to !== this.state.to) {
      this.setState({ from, to });
    }
  };

  /** Paper has no window: all rows are drawn, up to a number. */
  #printed = () => atOnce(() => this.setState({ from: 0, to: MOST_PRINTED }));

  #key = (event) => {
    const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (
      by === undefined ||
      this.#isLines ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.target.closest("input, select, textarea")
    ) {
      return;
    }
    const shown = this.#shown;
    const at = shown.indexOf(this.state.cursor);
    const next = shown[Math.min(shown.length - 1, Math.max(0, at === -1 ? 0 : at + by))];
    if (next === undefined) {
      return;
    }
    event.preventDefault();
    this.#go(next);
  };

  /** Moves the focus to the row of a job. */
  #go(id) {
    this.#wanted = id;
    this.#reveal(this.#shown.indexOf(id));
    this.#measure();
    this.#select(id);
  }

  /** Scrolls until the row is between the sticky header and the lower edge. */
  #reveal(place) {
    scrollBy({ top: this.#hidden(place) });
  }

  /** Pixels to scroll until a row is in sight. */
  #hidden(place) {
    const height = this.#height;
    const top = this.#rows.current.getBoundingClientRect().top + place * height;
    const header = document.querySelector(".top")?.getBoundingClientRect().bottom ?? 0;
    return Math.min(0, top - header - height) || Math.max(0, top + height - innerHeight + 8);
  }

  #focused = (event) => {
    this.#select(event.currentTarget.dataset.job);
  };

  /** What the pointer is at stays there, be it to read it or to open it. */
  #pointed = () => {
    this.#heldTo = performance.now() + HELD;
  };

  #unpointed = (event) => {
    if (event.pointerType === "mouse") {
      this.#heldTo = 0; // a finger that leaves the screen may have begun to scroll
    }
  };

  #select(cursor) {
    this.props.session.left.cursor = cursor;
    this.setState({ cursor });
  }

  /** True if the list names the appliance of each job: the page is not of one alone, and jobs name theirs. */
  get #isFleet() {
    const { fleet, filter } = this.props;
    const isNamed = this.#listing.instances.size > 0 || fleet.instances.size > 0 || filter.instance.length > 0;
    return HERE.instance === "" && isNamed;
  }

  /** True if lines of logs are shown in place of jobs. */
  get #isLines() {
    return this.props.filter.in === "log" && this.#logs.state !== "none";
  }

  #row(id, place, top) {
    const { filter, fleet, now } = this.props;
    const listing = this.#listing;
    const job = this.#jobs.get(id);
    const of = this.#shown.length;
    if (id === OLDER) {
      return html`<${Older} key=${id} jobs=${listing.older.map((each) => this.#jobs.get(each))} isOpen=${filter.older !== ""} place=${place} of=${of}
        top=${top} now=${now} onFocus=${this.#focused} onClick=${() => changeFilter(filter, { older: filter.older === "" ? "1" : "" })} />`;
    }
    if (job === undefined) {
      return null; // it has left the daemon's memory while the rows stand
    }
    const before = place === 0 ? undefined : this.#jobs.get(this.#shown[place - 1]);
    const begins = filter.sort.endsWith("appliance") && before?.instance !== job.instance;
    return html`<${Row} key=${id} job=${job} place=${place} of=${of} top=${top}
      q=${filter.q} equal=${listing.equal.get(job.job_id) ?? 0} now=${fleet.asOf(job.instance, now)}
      fleet=${this.#isFleet} isSilent=${fleet.isSilent(job.instance)}
      begins=${begins} onFocus=${this.#focused} />`;
  }

  render({ filter, fleet, now }, { update, from, to }) {
    const listing = this.#listing;
    const search = this.#search;
    const jobs = this.#renew(update.jobs, new Set(), { filter, now });
    this.#jobs = jobs;
    const shown = this.#shown;
    const isFleet = this.#isFleet;
    const visible = shown.slice(from, to);
    const beyond = [...search.found.keys()].filter((id) => !update.jobs.has(id)).length;
    const height = this.#height;
    const isLines = this.#isLines;
    const isEmpty = shown.length === 0;
    return html`<div class=${isFleet ? "list has-fleet" : "list"}>
      <h1 class="unseen">Jobs</h1>
      <${Filters} filter=${filter} listing=${listing} jobs=${jobs} seen=${this.#seen} onEnter=${this.#enter} />
      ${isFleet && html`<${Appliances} fleet=${fleet} counts=${listing.instances} chosen=${filter.instance} now=${now}
        onChoose=${(instance) => changeFilter(filter, { instance })} />`}
      <${SearchProgress} search=${search} logs=${this.#logs} more=${beyond} opens=${this.#entered === filter.q.trim()} now=${now}
        onMore=${this.#more} isLines=${isLines} onMoreLines=${this.#moreLines} onLines=${this.#lines}
        entity=${entityNamed(filter.q, visible.map((id) => jobs.get(id)).filter(Boolean))} />
      ${
        !isLines &&
        html`<${Columns} sort=${filter.sort} fleet=${isFleet} onSort=${(sort) => changeFilter(filter, { sort })} />
      <ol class="rows" role="list" ref=${this.#rows} aria-label="Jobs" onPointerMove=${this.#pointed} onPointerLeave=${this.#unpointed}
          style=${{ height: `${shown.length * height}px`, "--row-height": `${height}px` }}>
        ${visible.map((id, place) => this.#row(id, from + place, (from + place) * height))}
      </ol>
      ${isEmpty && html`<${Nothing} synced=${update.synced} isRefused=${update.connection.state === "refused"} known=${update.jobs.size} filter=${filter} search=${search} logs=${this.#logs} />`}`
      }
      <${FoundLines} logs=${this.#logs} jobs=${jobs} isFleet=${isFleet} isAlone=${isLines || isEmpty} now=${now} onLines=${this.#lines} />
    </div>`;
  }
}

// -- Search and filters of the list, stored in its address, with the number of jobs by status.

const MONTH = 30 * 86_400_000;
/** Milliseconds from the first to the last day that a new period has. */

function changeFilter(filter, change) {
  replaceAddress(listAddress({ ...filter, ...change }));
}

const MOST_NAMES = 10;
/** Names of VMs that complete a text. */
const CHOICE = 50;
/** Milliseconds within which a name that Enter chooses is in the box. */

class Filters extends Component {
  constructor(props) {
    super(props);
    this.state = { names: [] };
  }

  #change(change) {
    changeFilter(this.props.filter, change);
  }

  /** An ID that was pasted with what stood around it is shown without that. */
  #typed = ({ currentTarget: { value } }) => {
    const id = idIn(value);
    const q = CONSTRUCTED.test(id) ? id : value;
    this.#change(q === "" ? { q, in: "" } : { q });
    this.setState({ names: q === "" ? [] : namesWith(q, this.props.jobs) });
  };

  #pickPeriod = (event) => {
    const when = event.currentTarget.value;
    const now = Date.now();
    const days = when === "days" ? { from: isoDay(now - MONTH), to: isoDay(now) } : { from: "", to: "" };
    this.#change({ ...days, when: when === "all" ? "all" : "" });
  };

  /** WebKit submits no form while it offers names, also if none is chosen. One that is chosen changes the value soon. */
  #pressed = ({ key, isComposing, currentTarget: box }) => {
    const { value } = box;
    if (key === "Enter" && !isComposing) {
      setTimeout(() => box.value === value && this.props.onEnter(), CHOICE);
    }
  };

  /** Buttons that add a value to the filter `name`, or remove it. */
  #chips(name, values, shownAs, counts) {
    const chosen = this.props.filter[name];
    return values.map((value) => {
      const shown = shownAs(value);
      const pressed = chosen.includes(value);
      const toggled = values.filter((other) => chosen.includes(other) !== (other === value));
      return html`<button type="button" class="chip" aria-pressed=${String(pressed)}
        onClick=${() => this.#change({ [name]: toggled })}>
        ${icon(shown.shape, shown.tone)} ${shown.word} <b>${counts.get(value) ?? 0}</b>
      </button>`;
    });
  }

  render({ filter, listing, seen }, { names }) {
    const { counts, forecasts, types } = listing;
    const known = filter.type === "" || types.includes(filter.type) ? types : [filter.type, ...types];
    const isPeriod = filter.from !== "" || filter.to !== "";
    const forecasted = forecasts.size > 0 || filter.forecast.length > 0;
    return html`<form class="filters ${forecasted ? "has-forecast" : ""}" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label class="search">
        <span class="unseen">Search by ID, VM, operation, step, error, or a text of a job or of a log</span>
        <input type="search" id="search" placeholder="ID, VM, operation, step, error, log line" value=${filter.q} autocomplete="off"
          spellcheck="false" aria-keyshortcuts="/" list="names" onInput=${this.#typed} onKeyDown=${this.#pressed} />
        <datalist id="names">${names.map((name) => html`<option key=${name} value=${name} />`)}</datalist>
        <kbd aria-hidden="true">/</kbd>
      </label>
      <div class="chips" role="group" aria-label="Status">
        ${this.#chips("status", STATUSES, shownStatus, counts)}
      </div>
      ${
        forecasted &&
        html`<div class="chips" role="group" aria-label="Forecast">
        ${this.#chips("forecast", LATENESS, shownLateness, forecasts)}
      </div>`
      }
      ${
        (listing.stalled > 0 || filter.stalled !== "") &&
        html`<div class="chips" role="group" aria-label="Silence">
        <button type="button" class="chip" aria-pressed=${String(filter.stalled !== "")}
          onClick=${() => this.#change({ stalled: filter.stalled === "" ? "1" : "" })}>
          ${icon("alert", "warn")} Stalled <b>${listing.stalled}</b></button>
      </div>`
      }
      <label class="choice"><span class="unseen">Type</span>
        <select value=${filter.type} onChange=${(event) => this.#change({ type: event.currentTarget.value })}>
          <option value="">All types</option>
          ${known.map((type) => html`<option key=${type} value=${type}>${type}</option>`)}
        </select>
      </label>
      <label class="choice"><span class="unseen">Period</span>
        <select value=${isPeriod ? "days" : filter.q === "" ? filter.when : "all"} onChange=${this.#pickPeriod}>
          ${filter.q === "" && html`<option value="">Last 24 hours</option>`}
          <option value="all">All</option>
          <option value="days">From … to …</option>
        </select>
      </label>
      ${
        isPeriod &&
        [
          ["from", "From", undefined, filter.to || undefined],
          ["to", "to", filter.from || undefined, undefined],
        ].map(
          ([name, label, min, max]) => html`<label key=${name} class="choice day">${label}
            <input type="date" value=${filter[name]} min=${min} max=${max}
              onChange=${(event) => this.#change({ [name]: event.currentTarget.value })} /></label>`,
        )
      }
      <${Failures} listing=${listing} seen=${seen} instance=${filter.instance.length === 1 ? filter.instance[0] : ""} />
      <p class="unseen">${counted(listing.shown.length, "job")}</p>
    </form>`;
  }
}

/** Names of VMs that have a text; none if it is one. */
function namesWith(q, jobs) {
  const names = new Set([...jobs].map(([, job]) => vmOf(job)).filter((name) => name?.toLowerCase().includes(q.toLowerCase())));
  return names.has(q) ? [] : [...names].sort().slice(0, MOST_NAMES);
}

/** Buttons that take the failed jobs out of the first rows, and that bring them back. */
function Failures({ listing, seen, instance }) {
  const { unseen, seenFailed } = listing;
  return html`${
    unseen.length + seenFailed.length > 0 &&
    html`<a class="failures-link" href=${failuresAddress("7d", instance)}>Failures by kind</a>`
  }${
    unseen.length > 0 &&
    html`<button type="button" class="quiet-button mark-seen" onClick=${() => seen.add(unseen)}
      title="They stay in the list, but no longer come first. Only this browser remembers it.">
      ${icon("check")} Mark ${unseen.length.toLocaleString("en")}<span class="wide-only"> failure${unseen.length === 1 ? "" : "s"} as</span> seen</button>`
  }${
    unseen.length === 0 &&
    seenFailed.length > 0 &&
    html`<button type="button" class="quiet-button mark-seen" onClick=${() => seen.remove(seenFailed)}>
      ${icon("back")} ${counted(seenFailed.length, "failure")} seen: show first again</button>`
  }`;
}

// -- The heads of the list's columns, which choose its order.

const URGENCY = "the most urgent first";
const WORDS = {
  "-start": "newest first",
  start: "oldest first",
  "-duration": "longest first",
  duration: "shortest first",
  end: "soonest first",
  "-end": "latest first",
  appliance: "grouped by appliance",
  "-appliance": "grouped by appliance, from the last name",
};

/**
 * `sort`: the order of the list, as in its address. `onSort(order)` chooses one; "" is the list's own order. `fleet`:
 * the jobs are of several appliances.
 */
function Columns({ sort, fleet, onSort }) {
  const head = (name, word, first, second) => {
    const next = sort === first ? second : sort === second ? "" : first;
    const chosen = sort === first || sort === second;
    return html`<button type="button" class="column column-${name}" aria-pressed=${String(chosen)}
      aria-label=${chosen ? `${word}, ${WORDS[sort]}` : word} title="Sort: ${next === "" ? URGENCY : WORDS[next]}" onClick=${() => onSort(next)}>
      ${word}${chosen && (sort.startsWith("-") ? " ↓" : " ↑")}
    </button>`;
  };
  return html`<div class="columns" role="group" aria-label="Sort by">
    <button type="button" class="column" aria-pressed=${String(sort === "")} title="Sort: ${URGENCY}"
      onClick=${() => onSort("")}>Urgency</button>
    <span class="column-job" aria-hidden="true">Job</span>
    ${fleet && head("appliance", "Appliance", "appliance", "-appliance")}
    <span class="column-what" aria-hidden="true">Progress or error</span>
    ${head("end", "Forecast end", "end", "-end")}
    ${head("start", "Started", "-start", "start")}
    ${head("duration", "Duration", "-duration", "duration")}
  </div>`;
}

// -- One job in the list. It is rendered again only when its job, place, second or day has changed.

const FINE = 0.5;
/** Percent: half a pixel of a bar in the list. */

class Row extends Component {
  #progress = new Progress();

  shouldComponentUpdate(next) {
    const now = this.props;
    return (
      next.job !== now.job ||
      next.place !== now.place ||
      next.of !== now.of ||
      next.equal !== now.equal ||
      next.q !== now.q ||
      next.begins !== now.begins ||
      next.isSilent !== now.isSilent ||
      next.fleet !== now.fleet ||
      next.top !== now.top ||
      (next.now !== now.now && (!next.job.terminal || dayOf(next.now) !== dayOf(now.now) || ago(next) !== ago(now)))
    );
  }

  /**
   * `fleet`: the jobs are of several appliances. `isSilent`: nothing comes from the job's. `begins`: the row is the
   * first one of an appliance in a list that is grouped by them.
   */
  render({ job, place, of, top, now, q, equal = 0, fleet = false, isSilent = false, begins = false, onFocus }) {
    const shown = shownStatus(job.status);
    const started = moment(job.started_at);
    const progress = this.#progress.at(job, now);
    const forecast = job.terminal ? null : outlook(job, now, progress.left);
    const left = forecast === null ? "" : "has-left";
    const style = { transform: `translateY(${top}px)` };
    return html`<li class=${rowClass(begins, isSilent)} aria-setsize=${of} aria-posinset=${place + 1} style=${style}>
      <a class="row-link ${left} tone-edge-${isUrgent(job) ? "warn" : shown.tone}" href=${jobAddress(job.job_id, job.instance)} data-job=${job.job_id}
        onFocus=${onFocus}>
        <span class="row-status ${left}">${icon(shown.shape, shown.tone)} <span>${shown.word}</span></span>
        <span class="row-subject"><b>${subject(job)}</b> <span class="soft">${
          fleet && html`<span class="row-where">${text(job.instance)} · </span>`
        }<${What} job=${job} q=${q} />${
          started !== null && dayOf(started) !== dayOf(now) && html`<span class="row-day"> · ${shortTime(started, now)}</span>`
        }</span></span>
        ${fleet && html`<span class="row-appliance">${isSilent && icon("cross", "bad")} ${text(job.instance)}</span>`}
        <span class="row-progress">${job.terminal ? result(job, equal, now) : underWay(job, now, progress, forecast)}</span>
        <span class="row-started soft" title=${inUtc(job.started_at)}>${shortTime(started, now) || "not started"}</span>
        <span class="row-elapsed" title=${comparison(job) || undefined}>${lasting(job, now)}</span>
      </a>
    </li>`;
  }
}

/** The row of the failures of over an hour ago. It stands before them, and unfolds them. */
function Older({ jobs, isOpen, place, of, top, now, onFocus, onClick }) {
  const newest = jobs.map((job) => moment(job?.ended_at) ?? moment(job?.started_at)).reduce((a, b) => Math.max(a, b), 0);
  return html`<li class="row" aria-setsize=${of} aria-posinset=${place + 1} style=${{ transform: `translateY(${top}px)` }}>
    <button type="button" class="row-older" aria-expanded=${String(isOpen)} data-job=${OLDER}
      onFocus=${onFocus} onClick=${onClick}>${icon("cross", "bad")}
      <span><b>${counted(jobs.length, "older failure")}</b> <span class="soft">the newest at ${shortTime(newest, now)}</span></span>
      <span class="row-unfold">${isOpen ? "Hide" : "Show"}</span></button>
  </li>`;
}

/** The operation of a job; of one that was found by what its row does not show, that. */
function What({ job, q }) {
  const why = foundBy(job, q);
  if (why === null) {
    return html`<bdi>${operations(job)[0] ?? ""}</bdi>`;
  }
  return why.where === "" ? "found in a step or an ID" : html`${why.where}: <bdi>${marked(why.excerpt, why.word)}</bdi>`;
}

function rowClass(begins, isSilent) {
  return ["row", begins && "is-first-of-group", isSilent && "is-silent-row"].filter(Boolean).join(" ");
}

/** "4 min ago": when a job failed, if that was within a day; else "". */
function ago({ job, now }) {
  const ended = job.status === "failed" ? moment(job.ended_at) : null;
  return ended === null || now - ended > 86_400_000 ? "" : `${roughly(now - ended)} ago`;
}

function result(job, equal, now) {
  const failed = job.progress?.steps_failed ?? 0;
  if (job.status === "failed") {
    return html`<span class="row-error">${errorLine(job) || "no reason given"}</span>
      <span class="row-ago soft" title=${inUtc(job.ended_at)}>${ago({ job, now })}</span>
      ${equal > 0 && html`<b class="row-equal">+ ${counted(equal, "equal failure")}</b>`}`;
  }
  return failed > 0
    ? html`<span class="mark tone-bad">${icon("alert", "bad")} ${counted(failed, "step")} failed</span>`
    : html`<span class="soft">${job.progress?.steps_seen > 0 && counted(job.progress.steps_done ?? 0, "step")}</span>`;
}

function underWay(job, now, { left, percent }, forecast) {
  const { silent } = liveliness(job, now);
  const shape = silent !== null ? "is-silent" : left?.state === "overdue" ? "is-overdue" : "";
  return html`<span class="bar" aria-hidden="true">${bar(percent, shape, FINE)}</span>
    <span class="row-percent">${percent === null ? "–" : `${Math.floor(percent)} %`}</span>
    <span class="row-now">
      ${
        silent === null
          ? html`<span class="row-step ${forecast === null ? "" : "has-left"} soft">${currentStepOf(job)}</span>`
          : html`<span class="mark tone-warn ${job.stalled ? "" : "is-brief"}">${icon("alert", "warn")} ${silent}</span>`
      }
      ${forecast !== null && html`<${Left} forecast=${forecast} />`}
    </span>`;
}

function Left({ forecast: { lateness, why, brief, source } }) {
  const title = lateness === null ? source : `${lateness.word}: ${why}. ${source}`;
  return html`<span class="row-left" title=${title}>
    ${lateness !== null &&
      html`<b class="tone-${lateness.tone}">${icon(lateness.shape)} ${lateness.word}:</b>${" "}`}
    ${brief}
  </span>`;
}
