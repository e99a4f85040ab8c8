/**
 * The list of jobs. Only the visible rows are in the DOM, so a thousand jobs cost as much as thirty.
 *
 * All rows have the same height in rem, so that the position of each can be computed.
 */

import { Filters } from "./filters.js";
import { Component, createRef, html } from "./html.js";
import { Listing } from "./listing.js";
import { jobAddress } from "./route.js";
import { Row } from "./row.js";
import { counted } from "./words.js";

const SPARE = 8;
/** Rows rendered above and below the window, for quick scrolling and for the keyboard. */
const NARROW = "(max-width: 46rem)";

export class ListPage extends Component {
  #listing = new Listing();
  #rows = createRef();
  #wanted = null;

  constructor(props) {
    super(props);
    this.state = { update: props.session.list(this.#onUpdate), from: 0, to: 40, cursor: props.session.left.cursor };
    this.#listing.update(this.state.update.jobs, null, props.filter, props.now);
  }

  #onUpdate = (update) => {
    const { session, filter, now } = this.props;
    session.clock.documentsChanged(update.changed);
    this.#listing.update(update.jobs, update.changed, filter, now);
    this.props.onCounts(this.#listing.counts);
    this.setState({ update });
  };

  componentDidMount() {
    addEventListener("scroll", this.#measure, { passive: true });
    addEventListener("resize", this.#measure);
    addEventListener("keydown", this.#key);
    const { left } = this.props.session;
    scrollTo(0, left.scrolled);
    this.#wanted = left.cursor;
    this.#measure();
    this.props.onCounts(this.#listing.counts);
  }

  componentWillUnmount() {
    removeEventListener("scroll", this.#measure);
    removeEventListener("resize", this.#measure);
    removeEventListener("keydown", this.#key);
    this.props.session.unlist();
  }

  componentDidUpdate() {
    if (this.#wanted !== null) {
      const link = this.#link(this.#wanted);
      if (link !== null) {
        this.#wanted = null;
        link.focus({ preventScroll: true });
      }
    }
  }

  #link(id) {
    return this.#rows.current?.querySelector(`[data-job="${CSS.escape(id)}"]`) ?? null;
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
    this.#wanted = next;
    this.#reveal(shown.indexOf(next));
    this.#measure();
    this.#select(next);
  };

  /** Scrolls until the row is between the sticky header and the lower edge. */
  #reveal(place) {
    const height = this.#height;
    const top = this.#rows.current.getBoundingClientRect().top + place * height;
    const header = document.querySelector(".top")?.getBoundingClientRect().bottom ?? 0;
    if (top < header + height) {
      scrollBy({ top: top - header - height });
    } else if (top + height > innerHeight - 8) {
      scrollBy({ top: top + height - innerHeight + 8 });
    }
  }

  #focused = (event) => {
    this.#select(event.currentTarget.dataset.job);
  };

  #select(cursor) {
    this.props.session.left.cursor = cursor;
    this.setState({ cursor });
  }

  render({ filter, now }, { update, from, to }) {
    const listing = this.#listing;
    listing.update(update.jobs, new Set(), filter, now);
    const { shown } = listing;
    const height = this.#height;
    return html`<div class="list">
      <h1 class="unseen">Jobs</h1>
      <${Filters} filter=${filter} counts=${listing.counts} forecasts=${listing.forecasts}
        types=${listing.types} total=${shown.length} />
      <ol class="rows" role="list" ref=${this.#rows} aria-label="Jobs"
          style=${{ height: `${shown.length * height}px`, "--row-height": `${height}px` }}>
        ${shown.slice(from, to).map(
          (id, place) => html`<${Row} key=${id} job=${update.jobs.get(id)} place=${from + place}
          of=${shown.length} top=${(from + place) * height} now=${now} onFocus=${this.#focused} />`,
        )}
      </ol>
      ${shown.length === 0 && html`<${Nothing} update=${update} filter=${filter} />`}
    </div>`;
  }
}

function Nothing({ update, filter }) {
  if (!update.synced) {
    return html`<p class="nothing">Loading the jobs…</p>`;
  }
  if (update.jobs.size === 0) {
    return html`<p class="nothing">No job yet. The first one appears here without a reload.</p>`;
  }
  const q = filter.q.trim();
  return html`<div class="nothing">
    <p>None of ${counted(update.jobs.size, "job")} matches.</p>
    ${
      q !== "" &&
      html`<p><a href=${jobAddress(q)}>Follow “${q}” as an ID</a>. Its job need not exist yet.</p>`
    }
    <p><a href="#/">Show all</a></p>
  </div>`;
}
