/** How far the search in the daemon's database has come, and what to do when nothing is found. */

import { html } from "./html.js";
import { entityAddress, jobAddress } from "./route.js";
import { moment, shortTime } from "./times.js";
import { counted, named, vmOf } from "./words.js";

/** A line above the rows. `entity`: the VM or context that the text names exactly, or "". `opens`: Enter waits for a job. */
export function Progress({ search, more, entity, opens, now, onMore }) {
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
    <p>${q === "" ? `None of ${counted(known, "job")} matches.` : `No job${where} has this text.`}</p>
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
