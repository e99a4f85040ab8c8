/** The lines of a log in a pane that scrolls: only those in sight are in the document. What is in sight stays there. */

import { Component, createRef, html } from "./html.js";
import { Layout } from "./log_layout.js";
import { LogLine } from "./log_line.js";
import { dayOf, moment } from "./times.js";

const NEAR = 24;
/** Pixels from the end within which the log counts as scrolled to the end. */
const BEYOND = 800;
/** Pixels outside the pane in which lines are drawn, and from which further lines are read. */
const ESTIMATE = 21;

export class LogList extends Component {
  #pane = createRef();
  #list = createRef();
  #layout = new Layout(ESTIMATE);
  #anchor = null;
  #revealed = null;
  #width = 0;
  /** Where the list has scrolled to by itself: only other scroll events come from the user. */
  #scrolledTo = -1;
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
    if (following) {
      this.#scroll(pane.scrollHeight);
    } else if (this.#anchor !== null) {
      const top = this.#layout.top(this.#anchor.id);
      if (top !== null) {
        this.#scroll(top + this.#anchor.below);
      }
    }
  }

  #scroll(top) {
    const pane = this.#pane.current;
    if (Math.abs(pane.scrollTop - top) >= 1) {
      pane.scrollTop = top;
      this.#scrolledTo = pane.scrollTop;
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
    const pane = this.#pane.current;
    if (pane === null) {
      return; // The event comes with the next frame: other lines may have taken the place of these.
    }
    const { lines } = this.props;
    if (Math.abs(pane.scrollTop - this.#scrolledTo) < 2) {
      this.#see();
      return;
    }
    this.#scrolledTo = -1;
    if (lines.length > 0) {
      const { event_id: id } = lines[this.#layout.at(pane.scrollTop)];
      this.#anchor = { id, below: pane.scrollTop - this.#layout.top(id) };
    }
    this.props.onScroll(pane.scrollHeight - pane.scrollTop - pane.clientHeight < NEAR);
    this.#see();
  };

  /** The event ID of the first line in sight; null if there is none. */
  #first() {
    const { lines } = this.props;
    return lines.length === 0 ? null : lines[this.#layout.at(this.#pane.current.scrollTop + 1)].event_id;
  }

  #key = (event) => {
    if (event.target !== this.#pane.current || event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const move = { Home: "start", End: "end", j: "next", k: "previous" }[event.key];
    if (move !== undefined) {
      event.preventDefault();
      this.props.onMove(move, this.#first());
    }
  };

  /** Scrolls the page to the pane. */
  intoView() {
    this.#pane.current?.scrollIntoView({ block: "nearest" });
  }

  /** Shows the first line, also of lines that come later. */
  toStart() {
    this.#anchor = null;
    this.#pane.current.scrollTop = 0;
  }

  focus() {
    this.#pane.current?.focus();
  }

  render({ lines, wrap, target, step, day, address, text, empty }, { top, height }) {
    const isOld = lines.length > 0 && dayOf(moment(lines[0].at)) !== day;
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
