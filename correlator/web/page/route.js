/**
 * Parses and builds the address of a view, which is the fragment of the URL. Pure.
 *
 * `#/jobs/<any id, percent-encoded>` is one job; an ID is everything after `#/jobs/` and may have any character.
 * `#/jobs/<id>/log/<event_id>` is one line of its log; `line` is null otherwise. `#/jobs/<id>/log?level=WARN&step=3001&q=…`
 * is what is chosen of the log; both can be combined.
 * `#/entities/<name, percent-encoded>` is one VM or context.
 * `#/failures?since=7d` are the failed jobs in groups, `#/failures/<fingerprint>` is one of them.
 * `#/i/<instance>` before `/jobs/…`, `/entities/…` and `/failures…` names the appliance, at a gateway; `#/i/<instance>/` is its list.
 * `#/?q=…&status=failed,running&forecast=late&stalled=1&type=failover&instance=dc1,dc2&when=all&sort=-start` is the list, and `older=1`
 * unfolds the failures of over an hour ago; `in=log` shows the lines of logs that have the text, and no jobs;
 * `from=2026-10-01&to=2026-10-31` are the first and the last day of the starts, in the zone of the page.
 * Any other fragment is the list without filters.
 *
 * `HERE` is where the page is served from.
 */

import { LATENESS, LEVELS, STATUSES } from "./words.js";

const JOB = "#/jobs/";
const ENTITY = "#/entities/";
const FAILURES = "#/failures";
const FAILURE = /^#\/failures(?:\/([\da-f]{12}))?(?:\?since=(\w+))?$/;
const INSTANCE = /^#\/i\/([\w-]{1,64})(?=\/)/;
const NAME = /^[\w-]{1,64}$/;
const LOG = /^(.+?)(?:\/log(?=[/?])(?:\/(\d{1,15}))?(?:\?(.*))?)?$/s;
const DAY = /^[1-9]\d{3}-\d\d-\d\d$/;
const LIST = "#/?";

const EVERYTHING = Object.freeze({
  q: "",
  status: Object.freeze([]),
  forecast: Object.freeze([]),
  stalled: "",
  type: "",
  instance: Object.freeze([]),
  when: "",
  from: "",
  to: "",
  sort: "",
  older: "",
  in: "",
});

const SORTS = Object.freeze(["-start", "start", "-duration", "duration", "end", "-end", "appliance", "-appliance"]);
/** Orders of the list besides its own; a minus sign is descending. */

export const SINCES = Object.freeze(["1d", "7d", "30d"]);
/** Periods of the failures. */

/** `instance` is the appliance that the address names, or "". */
export function parse(address) {
  const [prefix, instance = ""] = INSTANCE.exec(address) ?? [""];
  const hash = prefix === "" ? address : `#${address.slice(prefix.length)}`;
  const view = viewOf(hash);
  if (view.view !== "list") {
    return { ...view, instance };
  }
  const { filter } = view;
  return { ...view, instance: "", filter: instance === "" ? filter : { ...filter, instance: [instance] } };
}

function viewOf(hash) {
  if (hash.startsWith(JOB) && hash.length > JOB.length) {
    const [, id, line = null, text] = LOG.exec(hash.slice(JOB.length));
    const query = new URLSearchParams(text);
    const [level = "INFO"] = chosen(query.get("level"), LEVELS);
    const log = { level, step: query.get("step") ?? "", q: query.get("q") ?? "" };
    return { view: "job", id: decoded(id), line: line === null ? null : Number(line), log };
  }
  if (hash.startsWith(ENTITY) && hash.length > ENTITY.length) {
    return { view: "entity", name: decoded(hash.slice(ENTITY.length)) };
  }
  const failure = FAILURE.exec(hash);
  if (failure !== null) {
    const [, fingerprint = "", since] = failure;
    return { view: "failures", fingerprint, since: SINCES.includes(since) ? since : "7d" };
  }
  if (!hash.startsWith(LIST)) {
    return { view: "list", filter: EVERYTHING };
  }
  const query = new URLSearchParams(hash.slice(LIST.length));
  return {
    view: "list",
    filter: {
      q: query.get("q") ?? "",
      status: chosen(query.get("status"), STATUSES),
      forecast: chosen(query.get("forecast"), LATENESS),
      stalled: query.get("stalled") === "1" ? "1" : "",
      type: query.get("type") ?? "",
      instance: (query.get("instance") ?? "").split(",").filter((name) => NAME.test(name)),
      when: query.get("when") === "all" ? "all" : "",
      from: day(query.get("from")),
      to: day(query.get("to")),
      sort: SORTS.includes(query.get("sort")) ? query.get("sort") : "",
      older: query.get("older") === "1" ? "1" : "",
      in: query.get("in") === "log" ? "log" : "",
    },
  };
}

function day(text) {
  return DAY.test(text ?? "") ? text : "";
}

function chosen(text, known) {
  return (text ?? "").split(",").filter((each) => known.includes(each));
}

/** `instance`: the appliance of the job, if one is known; a page of one appliance need not name it. */
export function jobAddress(id, instance) {
  return at(instance, JOB) + encodeURIComponent(wellFormed(id));
}

export function entityAddress(name, instance) {
  return at(instance, ENTITY) + encodeURIComponent(wellFormed(name));
}

/** The failed jobs in groups. */
export function failuresAddress(since, instance) {
  return `${at(instance, FAILURES)}${since === "7d" ? "" : `?since=${since}`}`;
}

/** One group of them. */
export function failureAddress(fingerprint, instance) {
  return `${at(instance, FAILURES)}/${fingerprint}`;
}

/** The address of a line of a job's log, by its event ID, or of its log; with what is chosen of that. */
export function logAddress(id, instance, line, { level = "INFO", step = "", q = "" }) {
  const query = queryOf({ level: level === "INFO" ? "" : level, step, q });
  const tail = `${line === null ? "" : `/${line}`}${query === "" ? "" : `?${query}`}`;
  return `${jobAddress(id, instance)}${tail === "" ? "" : `/log${tail}`}`;
}

function at(instance, path) {
  return typeof instance === "string" && NAME.test(instance) && instance !== HERE.instance
    ? `#/i/${instance}${path.slice(1)}`
    : path;
}

export function listAddress(filter) {
  const query = queryOf(filter);
  return query === "" ? "#/" : LIST + query;
}

function queryOf(filter) {
  return new URLSearchParams(Object.entries(filter).filter(([, value]) => value.length > 0)).toString();
}

/** Shows an address instead of this one, without a history entry for each letter of a text, so that Back leaves the view. */
export function replaceAddress(address) {
  history.replaceState(null, "", address);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** The list with this text in its search box. */
export function searchAddress(q) {
  return listAddress({ q: wellFormed(q) });
}

/** Decodes percent-encoding; a text that is not validly encoded is returned unchanged. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const AROUND = /^["'`<([{\s]+|["'`>)\]},;.\s]+$/g;
/** What stands around an ID that was copied out of a text. */

/** The ID in a text that somebody has copied, with quotes, a comma, `job_id=`, or as an address of a job. Pure. */
export function idIn(given) {
  const address = /(?:^|\/)jobs\/([^/?#\s]+)/.exec(given);
  const bare = address === null ? given : decoded(address[1]);
  return bare.replace(AROUND, "").replace(/^(?:[\w.-]*[_.-])?(?:id|uuid)["']?\s*[=:]\s*/i, "").replace(AROUND, "");
}

/** Replaces a lone surrogate, which encodeURIComponent rejects, by U+FFFD, as UTF-8 encoding does. */
function wellFormed(text) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new TextEncoder().encode(String(text)));
}

// -- Where this page is served from. A gateway serves itself at `/`, and one appliance each at `/i/<instance>/`; a proxy
// may put a path before that.

const OWN = /^(.*\/)i\/([\w-]{1,64})\/$/;

/** `base` ends with a slash. `root` is the fleet's; `instance` the appliance that `base` is restricted to, or "". */
export function placeOf(base) {
  const [, path = ".", instance = ""] = OWN.exec(base.pathname) ?? [];
  return { base, root: new URL(path, base), instance };
}

export const HERE = placeOf(new URL("..", import.meta.url));

/** The base of the API for one appliance; "" is what this page is served from. */
export function baseOf(instance, here = HERE) {
  return instance === "" ? here.base : new URL(`i/${instance}/`, here.root);
}

/** True if the server has said in its page that it is a gateway. */
export function isGateway() {
  return globalThis.document?.documentElement.dataset.fleet !== undefined;
}
