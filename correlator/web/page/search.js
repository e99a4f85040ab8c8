/**
 * The search of the list in the daemon's database, for jobs that are no longer in memory.
 *
 * One word is sought in IDs and names of VMs first, which takes the database a quarter of the time; then, as several
 * words are, in operations, steps and errors too. Each request reads a bounded part of the database and says how far
 * back it came; the next one continues there. The number of requests and of found jobs is bounded: then the search
 * stops, and `more` continues it.
 */

import { html } from "./html.js";
import { entityAddress, jobAddress } from "./route.js";
import { moment, shortTime } from "./times.js";
import { counted, named, vmOf } from "./words.js";

const PAUSE = 150;
/** Milliseconds after the last letter before the search begins. */
const LEAST = 2;
/** Characters. */
const PAGE = 100;
const MOST_FOUND = 1000;
const MOST_REQUESTS = 40;
/** Requests before the search stops. */
const TRIES = 5;
/** Requests for one page while the daemon answers that it is busy. */

export class Search {
  #timer = 0;
  #asked = '["",[],["",""]]';
  #period = ["", ""];
  #by = "text";
  /** The parameter of the requests: `q` for IDs and VMs, or `text` for everything. */
  #abort = new AbortController();
  #cursor = null;
  #instances = [];
  #onChange;

  text = "";
  /** Job ID → document; a new map after each change. */
  found = new Map();
  /** `none`, `searching`, `stopped` (`more` continues), `full` or `done`. */
  state = "none";
  /** RFC 3339: all jobs after it have been examined. */
  searchedTo = null;
  trouble = null;

  constructor(onChange) {
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
    this.#instances = instances;
    this.#period = period;
    this.#by = /^\S+$/.test(wanted) ? "q" : "text";
    Object.assign(this, { text: wanted, found: new Map(), searchedTo: null, trouble: null });
    this.#cursor = null;
    const isWanted = wanted.length >= LEAST || (wanted === "" && period.some((end) => end !== ""));
    this.state = isWanted ? "searching" : "none";
    if (isWanted) {
      this.#timer = setTimeout(() => this.more(session), PAUSE);
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
          this.#become("stopped", null);
          return;
        }
        const page = await this.#page(session, signal);
        if (signal.aborted) {
          return;
        }
        this.#add(page);
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

  #add(page) {
    this.found = new Map([...this.found, ...page.jobs.map((job) => [job.job_id, job])]);
    this.#cursor = page.next_cursor;
    const isOver = page.next_cursor === null;
    if (this.#by === "q") {
      this.#by = isOver ? "text" : "q";
      this.#become(this.found.size < MOST_FOUND ? "searching" : "full", null);
      return;
    }
    this.searchedTo = page.searched_to ?? null;
    if (isOver) {
      this.#become("done", page.complete === false ? page.reason : null);
    } else {
      this.#become(this.found.size < MOST_FOUND ? "searching" : "full", null);
    }
  }

  async #page(session, signal) {
    const address = session.api("jobs");
    for (const [name, value] of [[this.#by, this.text], ["since", this.#period[0]], ["until", this.#period[1]]]) {
      if (value !== "") {
        address.searchParams.set(name, value);
      }
    }
    address.searchParams.set("limit", String(PAGE));
    for (const instance of this.#instances) {
      address.searchParams.append("instance", instance);
    }
    if (this.#cursor !== null) {
      address.searchParams.set("cursor", this.#cursor);
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

// -- How far the search in the daemon's database has come, and what to do when nothing is found.

/** A line above the rows. `entity`: the VM or context that the text names exactly, or "". `opens`: Enter waits for a job. */
export function SearchProgress({ search, more, entity, opens, now, onMore }) {
  if (search.state === "none") {
    return null;
  }
  const back = moment(search.searchedTo);
  const until = back === null ? "" : ` Searched back to ${shortTime(back, now)}.`;
  const sentences = {
    searching: `Searching older jobs in the database…${until}`,
    stopped: `The search has stopped.${until}`,
    full: `Too many jobs match: these are the newest.${until}`,
    done: "All jobs are searched.",
  };
  return html`<div class="beyond">
    <p role="status">${search.state === "searching" && html`<span class="pulse" aria-hidden="true"></span>`}
      ${sentences[search.state]} ${more > 0 && `${counted(more, "job")} from the database.`}
      ${opens && search.state === "searching" && " The first job found opens."}</p>
    ${search.trouble !== null && html`<p class="tone-warn">Jobs may be missing: ${search.trouble}.</p>`}
    ${search.state === "stopped" && html`<button type="button" class="button" onClick=${onMore}>Search on</button>`}
    ${entity !== "" && html`<a href=${entityAddress(entity)}>All jobs of <span>${named(entity)}</span></a>`}
  </div>`;
}

/** What stands in place of rows. `known`: the number of jobs in memory. While a token is needed, nothing is loading. */
export function Nothing({ synced, isRefused, known, filter, search }) {
  if (!synced) {
    return isRefused ? null : html`<p class="nothing">Loading the jobs…</p>`;
  }
  const q = filter.q.trim();
  if (known === 0 && q === "") {
    return html`<p class="nothing">No job yet. The first one appears here without a reload.</p>`;
  }
  const where = { searching: " so far", done: "", none: " in memory" }[search.state] ?? " so far";
  return html`<div class="nothing">
    <p>${q === "" ? `None of ${counted(known, "job")} matches.` : `No job${where} has this text. Lines of logs are not searched.`}</p>
    ${
      q !== "" &&
      html`<p><a href=${jobAddress(q)}>Follow “<span>${named(q)}</span>” as an ID</a>. Its job need not exist yet. Enter does the same.</p>`
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
