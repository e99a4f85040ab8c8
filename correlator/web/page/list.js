/**
 * The list of jobs. Only the visible rows are in the DOM, so a thousand jobs cost as much as thirty.
 *
 * All rows have the same height in rem, so that the position of each can be computed.
 */

import { Appliances } from "./appliances.js";
import { Nothing, Progress, entityNamed } from "./beyond.js";
import { Columns } from "./columns.js";
import { Filters, changeFilter } from "./filters.js";
import { Component, atOnce, createRef, html } from "./html.js";
import { Listing } from "./listing.js";
import { HERE } from "./place.js";
import { jobAddress } from "./route.js";
import { Row } from "./row.js";
import { Search, together } from "./search.js";
import { Seen } from "./seen.js";
import { periodOf } from "./times.js";

const SPARE = 8;
/** Rows rendered above and below the window, for quick scrolling and for the keyboard. */
const MOST_PRINTED = 1000;
/** Rows on paper. */
const CONSTRUCTED = /-\d{10}$|^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i;
/** The IDs of GUIs, which end in a Unix second, and UUIDs. */
const NARROW = "(max-width: 46rem)";

export class ListPage extends Component {
  #listing = new Listing();
  #rows = createRef();
  #wanted = null;
  #selected = -1;
  /** The place of the selected row when it was drawn last. */
  #seen = new Seen();
  #search = new Search(() => this.setState({}, this.#openFirst));
  #entered = null;
  /** The text at which Enter was pressed before anything was found. */
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
    if (this.#given.seen !== this.#seen.ids || this.#given.found !== this.#search.found) {
      this.#given = { seen: this.#seen.ids, found: this.#search.found };
    }
    this.#listing.update(jobs, changed, filter, now, this.#given);
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
    this.props.session.unlist(this.#onUpdate);
  }

  #ask() {
    const { filter, session } = this.props;
    const period = periodOf(filter).map((at) => (at === null ? "" : new Date(at).toISOString()));
    this.#search.ask(filter.q, filter.instance, period, session);
  }

  #more = () => {
    this.#search.more(this.props.session);
  };

  /** Opens or reveals what an earlier Enter asked for, once the search has found a job or ended. */
  #openFirst = () => {
    if (this.#entered !== null && this.#entered === this.props.filter.q.trim()) {
      this.#enter();
    }
  };

  /**
   * Enter in the search box: opens the job of an ID, also of one that is not known yet, and a job that is the only one;
   * else goes to the first row. While nothing is found, it waits for the search, except for the text of an ID.
   */
  #enter = () => {
    const q = this.props.filter.q.trim();
    if (q === "") {
      return;
    }
    const jobs = this.#renew(this.state.update.jobs, new Set(), this.props);
    const { shown } = this.#listing;
    const exact = shown.find((id) => id === q || jobs.get(id).external_ids?.includes(q));
    const waits = shown.length === 0 && this.#search.state === "searching" && !CONSTRUCTED.test(q);
    this.#entered = waits ? q : null;
    if (waits) {
      this.#search.hurry(this.props.session);
    } else if (exact !== undefined || shown.length <= 1) {
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
    this.#selected = this.#listing.shown.indexOf(this.state.cursor);
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
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.target.closest("input, select, textarea")
    ) {
      return;
    }
    const { shown } = this.#listing;
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
    this.#reveal(this.#listing.shown.indexOf(id));
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

  #row(job, place, top) {
    const { filter, fleet, now } = this.props;
    const listing = this.#listing;
    const jobs = this.#jobs;
    const before = place === 0 ? undefined : jobs.get(listing.shown[place - 1]);
    const begins = filter.sort.endsWith("appliance") && before?.instance !== job.instance;
    return html`<${Row} key=${job.job_id} job=${job} place=${place} of=${listing.shown.length} top=${top}
      equal=${listing.equal.get(job.job_id) ?? 0} now=${fleet.asOf(job.instance, now)}
      fleet=${this.#isFleet} isSilent=${fleet.isSilent(job.instance)}
      begins=${begins} onFocus=${this.#focused} />`;
  }

  render({ filter, fleet, now }, { update, from, to }) {
    const listing = this.#listing;
    const search = this.#search;
    const jobs = this.#renew(update.jobs, new Set(), { filter, now });
    this.#jobs = jobs;
    const { shown } = listing;
    const isFleet = this.#isFleet;
    const visible = shown.slice(from, to);
    const beyond = [...search.found.keys()].filter((id) => !update.jobs.has(id)).length;
    const height = this.#height;
    return html`<div class=${isFleet ? "list has-fleet" : "list"}>
      <h1 class="unseen">Jobs</h1>
      <${Filters} filter=${filter} listing=${listing} seen=${this.#seen} onEnter=${this.#enter} />
      ${isFleet && html`<${Appliances} fleet=${fleet} counts=${listing.instances} chosen=${filter.instance} now=${now}
        onChoose=${(instance) => changeFilter(filter, { instance })} />`}
      <${Progress} search=${search} more=${beyond} opens=${this.#entered === filter.q.trim()} now=${now} onMore=${this.#more}
        entity=${entityNamed(filter.q, visible.map((id) => jobs.get(id)))} />
      <${Columns} sort=${filter.sort} fleet=${isFleet} onSort=${(sort) => changeFilter(filter, { sort })} />
      <ol class="rows" role="list" ref=${this.#rows} aria-label="Jobs"
          style=${{ height: `${shown.length * height}px`, "--row-height": `${height}px` }}>
        ${visible.map((id, place) => this.#row(jobs.get(id), from + place, (from + place) * height))}
      </ol>
      ${shown.length === 0 && html`<${Nothing} synced=${update.synced} isRefused=${update.connection.state === "refused"} known=${update.jobs.size} filter=${filter} search=${search} />`}
    </div>`;
  }
}
