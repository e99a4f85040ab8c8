/**
 * The address of a view: the fragment of the URL, read and written. Pure.
 *
 * `#/jobs/<any id, percent-encoded>` is one job; `#/?q=…&status=failed,running&type=failover&when=all` is the list.
 * What is neither is the list without filters. An ID is everything behind `#/jobs/`, whatever characters it has.
 */

import { STATUSES } from "./words.js";

const JOB = "#/jobs/";
const LIST = "#/?";

export const EVERYTHING = Object.freeze({ q: "", status: Object.freeze([]), type: "", when: "" });

export function parse(hash) {
  if (hash.startsWith(JOB) && hash.length > JOB.length) {
    return { view: "job", id: decoded(hash.slice(JOB.length)) };
  }
  if (!hash.startsWith(LIST)) {
    return { view: "list", filter: EVERYTHING };
  }
  const query = new URLSearchParams(hash.slice(LIST.length));
  return {
    view: "list",
    filter: {
      q: query.get("q") ?? "",
      status: (query.get("status") ?? "").split(",").filter((status) => STATUSES.includes(status)),
      type: query.get("type") ?? "",
      when: query.get("when") === "all" ? "all" : "",
    },
  };
}

export function jobAddress(id) {
  return JOB + encodeURIComponent(wellFormed(id));
}

export function listAddress(filter) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(filter)) {
    if (value.length > 0) {
      query.set(name, String(value));
    }
  }
  const text = query.toString();
  return text === "" ? "#/" : LIST + text;
}

/** A raw `%` that encodes nothing stands for itself. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Half a surrogate, which encodeURIComponent refuses, becomes U+FFFD, as it does on its way through UTF-8. */
function wellFormed(text) {
  return new TextDecoder().decode(new TextEncoder().encode(String(text)));
}
