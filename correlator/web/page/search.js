/**
 * The searches of the list in the daemon's database: for jobs that are no longer in memory, and for lines of all logs.
 *
 * Of a job one word is sought in IDs and names of VMs first, which takes the database a quarter of the time; then, as
 * several words are, in operations, steps and errors too. Each request reads a bounded part of the database and says how
 * far back it came; the next one continues there. The number of requests and of found jobs and lines is bounded: then
 * the search stops, and `more` continues it. Another text cancels both.
 */

import { html, marked } from "./html.js";
import { attributes } from "./log.js";
import { entityAddress, jobAddress, logAddress } from "./route.js";
import { inUtc, moment, shortTime } from "./times.js";
import { counted, levelTone, named, operations, subject, text, vmOf } from "./words.js";

const PAGE = 100;
const MOST_FOUND = 1000;
const MOST_REQUESTS = 40;
/** Requests before the search stops. */
const TRIES = 5;
/** Requests for one page while the daemon answers that it is busy. */

/** What both searches do: they ask for page after page of `path`. `pause`: milliseconds after the last letter. */
class Search {
  #timer = 0;
  #asked = '["",[],["",""]]';
  #abort = new AbortController();
  #given = [];
  #path;
  #pause;
  #onChange;

  cursor = null;
  text = "";
  /** `none`, `searching`, `stopped` (`more` continues), `full` or `done`. */
  state = "none";
  /** RFC 3339: all jobs or lines after it have been examined. */
  searchedTo = null;
  trouble = null;

  constructor(path, pause, onChange) {
    this.#path = path;
    this.#pause = pause;
    this.#onChange = onChange;
  }

  /**
   * Searches for a text instead of the last one, on these appliances; [] is all. `period`: the `since` and `until` of
   * the request, either may be "". The words that the daemon does not take are left out.
   */
  ask(text, instances, period, session) {
    const wanted = text.trim().split(/\s+/).slice(0, 8).join(" ");
    const asked = JSON.stringify([wanted, instances, period]);
    if (asked === this.#asked) {
      return;
    }
    this.close();
    this.#asked = asked;
    this.#given = [["since", period[0]], ["until", period[1]], ...instances.map((name) => ["instance", name])];
    Object.assign(this, { text: wanted, cursor: null, searchedTo: null, trouble: null });
    this.state = this.begins(wanted, period) ? "searching" : "none";
    if (this.state === "searching") {
      this.#timer = setTimeout(() => this.more(session), this.#pause);
    }
    this.#onChange();
  }

  /** Begins a search that `ask` has prepared at once. */
  hurry(session) {
    if (this.#timer !== 0) {
      this.more(session);
    }
  }

  close() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#abort.abort();
    this.#abort = new AbortController();
  }

  async more(session) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const { signal } = this.#abort;
    this.#become("searching", null);
    try {
      for (let requests = 0; this.state === "searching"; requests += 1) {
        if (requests === MOST_REQUESTS) {
          this.#become("stopped", this.trouble);
          return;
        }
        const page = await this.#page(session, signal);
        if (signal.aborted) {
          return;
        }
        this.cursor = page.next_cursor;
        this.#become(...this.add(page));
      }
    } catch (error) {
      if (!signal.aborted) {
        this.#become("stopped", error instanceof Error ? error.message : String(error));
      }
    }
  }

  #become(state, trouble) {
    this.state = state;
    this.trouble = trouble;
    this.#onChange();
  }

  async #page(session, signal) {
    const address = session.api(this.#path);
    const sought = [[this.by, this.text], ["limit", String(PAGE)], ["cursor", this.cursor ?? ""]];
    for (const [name, value] of [...sought, ...this.#given]) {
      if (value !== "") {
        address.searchParams.append(name, value);
      }
    }
    for (let tries = 1; ; tries += 1) {
      const response = await fetch(address, { headers: session.headers, signal });
      if (response.ok) {
        return await response.json();
      }
      if (response.status !== 503 || tries === TRIES) {
        throw new Error(`the daemon answered with HTTP status ${response.status}`);
      }
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    }
  }
}

export class JobSearch extends Search {
  /** The parameter of the requests: `q` for IDs and VMs, or `text` for everything. */
  by = "text";
  /** Job ID → document; a new map after each change. */
  found = new Map();

  constructor(onChange) {
    super("jobs", 150, onChange);
  }

  begins(wanted, period) {
    this.by = /^\S+$/.test(wanted) ? "q" : "text";
    this.found = new Map();
    return wanted.length >= 2 || (wanted === "" && period.some((end) => end !== ""));
  }

  /** Adds the jobs of a page. Returns the state of the search, and the trouble. */
  add(page) {
    this.found = new Map([...this.found, ...page.jobs.map((job) => [job.job_id, job])]);
    const isOver = page.next_cursor === null;
    const goesOn = this.found.size < MOST_FOUND ? "searching" : "full";
    if (this.by === "q") {
      this.by = isOver ? "text" : "q";
      return [goesOn, null];
    }
    this.searchedTo = page.searched_to ?? null;
    return isOver ? ["done", page.complete === false ? page.reason : null] : [goesOn, null];
  }
}

/** The search for lines. It rests whenever it has found as many as a page has. */
export class LineSearch extends Search {
  by = "text";
  /** The newest first. */
  lines = [];
  /** From 0 to 1: the share of the logs that has been searched. */
  searched = 0;
  #rests = PAGE;

  constructor(onChange) {
    super("events", 400, onChange);
  }

  begins(wanted) {
    Object.assign(this, { lines: [], searched: 0 });
    this.#rests = PAGE;
    return wanted.length >= 3;
  }

  add(page) {
    this.lines = [...this.lines, ...page.events].sort(newestFirst);
    this.searched = page.searched;
    this.searchedTo = page.searched_to;
    const trouble = page.complete === false ? page.reason : null;
    if (page.next_cursor === null) {
      return ["done", trouble];
    }
    if (trouble !== null && page.searched_to === null) { // only appliances that do not answer are left
      return ["stopped", trouble];
    }
    if (this.lines.length < this.#rests) {
      return ["searching", trouble];
    }
    this.#rests = this.lines.length + PAGE;
    return [this.lines.length < MOST_FOUND ? "stopped" : "full", trouble];
  }
}

function newestFirst(a, b) {
  return a.at === b.at ? b.event_id - a.event_id : a.at < b.at ? 1 : -1;
}

/** The jobs in memory and the found ones as one map; a job in memory is the newer of both. */
export function together(live, found) {
  if (found.size === 0) {
    return live;
  }
  return {
    get: (id) => live.get(id) ?? found.get(id),
    has: (id) => live.has(id) || found.has(id),
    *[Symbol.iterator]() {
      yield* live;
      for (const entry of found) {
        if (!live.has(entry[0])) {
          yield entry;
        }
      }
    },
  };
}

// -- How far the searches in the daemon's database have come.

/**
 * Lines above the rows. `entity`: the VM or context that the text names exactly, or "". `opens`: Enter waits for a job.
 * `onLines`: shows the lines alone, or the jobs again; `isLines`: the lines are alone.
 */
export function SearchProgress({ search, logs, more, entity, opens, now, isLines, onMore, onMoreLines, onLines }) {
  if (search.state === "none") {
    return null;
  }
  const until = back(search, now);
  const sentences = {
    searching: `Searching older jobs in the database…${until}`,
    stopped: `The search has stopped.${until}`,
    full: `Too many jobs match: these are the newest.${until}`,
    done: "All jobs are searched.",
  };
  return html`<div class="beyond">
    <p role="status">${search.state === "searching" && pulse()}
      ${sentences[search.state]} ${more > 0 && `${counted(more, "job")} from the database.`}
      ${opens && search.state === "searching" && " The first job found opens."}</p>
    ${search.trouble !== null && html`<p class="tone-warn">Jobs may be missing: ${search.trouble}.</p>`}
    ${search.state === "stopped" && html`<button type="button" class="button" onClick=${onMore}>Search on</button>`}
    ${entity !== "" && html`<a href=${entityAddress(entity)}>All jobs of <span>${named(entity)}</span></a>`}
    ${logs.state !== "none" && html`<p class="beyond-logs">${logs.state === "searching" && pulse()} ${ofLogs(logs, now)}</p>`}
    ${logs.trouble !== null && html`<p class="tone-warn">Lines may be missing: ${logs.trouble}.</p>`}
    ${logs.state === "stopped" && html`<button type="button" class="button" onClick=${onMoreLines}>Search the logs on</button>`}
    ${(logs.lines.length > 0 || isLines) && html`<button type="button" class="chip" aria-pressed=${String(isLines)}
      onClick=${onLines}>Only log lines <b>${logs.lines.length}</b></button>`}
  </div>`;
}

function pulse() {
  return html`<span class="pulse" aria-hidden="true"></span>`;
}

function back({ searchedTo }, now) {
  const at = moment(searchedTo);
  return at === null ? "" : ` Searched back to ${shortTime(at, now)}.`;
}

/** How far the search of the logs has come. */
function ofLogs(logs, now) {
  const found = logs.lines.length === 0 ? "no line" : counted(logs.lines.length, "line");
  const share = `${Math.floor(logs.searched * 100)} % of the logs`;
  const sentences = {
    searching: `Searching the logs, ${share}: ${found} so far.${back(logs, now)}`,
    stopped: `${share} are searched: ${found} so far.${back(logs, now)}`,
    full: `Too many lines match: these are the newest.${back(logs, now)}`,
    done: `All logs are searched: ${found}.`,
  };
  return sentences[logs.state];
}

// -- The lines that were found. Each leads to its place in the log of its job.

const BESIDE = 10;
/** Lines that are shown below jobs. */
const BEFORE = 60;
const EXCERPT = 200;
/** Characters before a word, and of an excerpt. */

/** `jobs`: documents by ID, for the names of jobs. `isAlone`: no job is shown, so all lines are. */
export function FoundLines({ logs, jobs, isFleet, isAlone, now, onLines }) {
  const words = logs.text.toLowerCase().split(" ");
  const shown = isAlone ? logs.lines : logs.lines.slice(0, BESIDE);
  if (shown.length === 0) {
    return null;
  }
  return html`<section class="found" aria-labelledby="found-title">
    <h2 id="found-title">Log lines</h2>
    <ol role="list">${shown.map((line) => html`<li key=${`${line.instance ?? ""} ${line.event_id}`}>
      <${FoundLine} line=${line} job=${jobs.get(line.job_id)} words=${words} isFleet=${isFleet} now=${now} /></li>`)}</ol>
    ${shown.length < logs.lines.length && html`<button type="button" class="quiet-button" onClick=${onLines}>
      All ${counted(logs.lines.length, "line")}</button>`}
  </section>`;
}

function FoundLine({ line, job, words, isFleet, now }) {
  const tone = levelTone(line.level);
  const missing = words.filter((word) => !text(line.message).toLowerCase().includes(word));
  const vm = job === undefined ? named(line.vm_name ?? line.job_id ?? "") : subject(job);
  const what = job === undefined ? text(line.operation) : (operations(job)[0] ?? "");
  const content = html`
    <span class="line-at" title=${inUtc(line.at)}>${shortTime(moment(line.at), now)}</span>
    <span class="line-level tone-${tone}">${text(line.level)}</span>
    <span class="found-of">${line.job_id === null ? html`<span class="soft">of no job</span>` : html`<b>${vm}</b>`} <span class="soft">${isFleet && `${text(line.instance)} · `}<bdi>${what}</bdi></span></span>
    <span class="found-text">${excerpt(text(line.message), words)}
      ${missing.length > 0 && html` <span class="line-attrs">${excerpt(attributes(line.attrs), missing)}</span>`}</span>`;
  return line.job_id === null
    ? html`<span class="found-line tone-line-${tone}">${content}</span>`
    : html`<a class="found-line tone-line-${tone}" href=${logAddress(line.job_id, line.instance, line.event_id, {})}>${content}</a>`;
}

/** The part of a text around the first of the words, with each marked. */
function excerpt(whole, words) {
  const lower = whole.toLowerCase();
  const first = Math.min(...words.map((word) => lower.indexOf(word)).filter((at) => at !== -1));
  const from = whole.length > EXCERPT && Number.isFinite(first) ? Math.max(0, first - BEFORE) : 0;
  return [from > 0 && "…", marked(whole.slice(from, from + EXCERPT), ...words), from + EXCERPT < whole.length && "…"];
}

// -- What to do when nothing is found.

/** What stands in place of rows. `known`: the number of jobs in memory. While a token is needed, nothing is loading. */
export function Nothing({ synced, isRefused, known, filter, search, logs }) {
  if (!synced) {
    return isRefused ? null : html`<p class="nothing">Loading the jobs…</p>`;
  }
  const q = filter.q.trim();
  if (known === 0 && q === "") {
    return html`<p class="nothing">No job yet. The first one appears here without a reload.</p>`;
  }
  const where = { searching: " so far", done: "", none: " in memory" }[search.state] ?? " so far";
  return html`<div class="nothing">
    <p>${q === "" ? `None of ${counted(known, "job")} matches.` : `No job${where} has this text.`}</p>
    ${
      q !== "" &&
      html`<p><a href=${jobAddress(q)}>Follow “<span>${named(q)}</span>” as an ID</a>. Its job need not exist yet.${logs.lines.length === 0 && " Enter does the same."}</p>`
    }
    <p><a href="#/">Show all</a></p>
  </div>`;
}

/** The name in `q` if it is exactly the VM or the context of one of `jobs`, else "". */
export function entityNamed(q, jobs) {
  const wanted = q.trim().toLowerCase();
  for (const job of jobs) {
    const name = [vmOf(job), job.context_id].find((each) => typeof each === "string" && each.toLowerCase() === wanted);
    if (wanted !== "" && name !== undefined) {
      return name;
    }
  }
  return "";
}
