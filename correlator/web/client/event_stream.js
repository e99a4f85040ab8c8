/** The transport `sse`: server-sent events. A stream has one filter, so each subscription opens its own stream. */

import { DEAD_AFTER } from "./attempt.js";
import { decode } from "./messages.js";
import { closeReason, fetchJob, parameters } from "./requests.js";
import { CloseCode } from "./retry.js";

/** @import { Link, TransportContext } from "./transports.js" */
/** @import { View } from "./view.js" */

/** @param {TransportContext} context @returns {Link} */
export function eventStream({ environment, token, request, receive, streamLost, end }) {
  const { clock } = environment;
  /** @type {Map<View, {source: any, isLost: boolean, timer: unknown} | null>} null until the stream is opened */
  const streams = new Map();

  /** @param {View} view */
  async function open(view) {
    const query = parameters(view.wanted);
    // EventSource cannot send headers: the token is exchanged for a ticket, which is valid for one request.
    if (token !== undefined) {
      const response = await request("api/v1/ticket", { method: "POST" });
      query.set("ticket", (await response.json()).ticket);
    }
    if (!streams.has(view)) return;
    const source = new environment.EventSource(new URL(`api/v1/stream?${query}`, environment.base).href);
    const stream = { source, isLost: false, timer: /** @type {unknown} */ (null) };
    streams.set(view, stream);
    // The daemon sends bookmarks on each stream, so the messages of one say nothing about another.
    const expectMessage = () => {
      clock.clearTimeout(stream.timer);
      const reason = `no message for ${DEAD_AFTER / 1000} s`;
      stream.timer = clock.setTimeout(() => end(CloseCode.NONE, reason), DEAD_AFTER);
    };
    expectMessage();
    /** @param {any} message */
    const receiveOne = (message) => {
      // On its own stream each subscription has the number 1.
      if ("sub" in message) message.sub = view.id;
      receive(message, view);
    };
    source.onmessage = (/** @type {{data: string}} */ event) => {
      stream.isLost = false;
      expectMessage();
      decode(event.data, receiveOne, end);
    };
    // A message `event` is an event of that name, which `onmessage` does not get.
    source.addEventListener("event", (/** @type {any} */ event) => source.onmessage?.(event));
    source.onerror = () => {
      // The browser reconnects and resumes by itself, but not with a ticket, which is valid only once.
      stream.isLost = token === undefined && source.readyState === 0;
      if (stream.isLost) streamLost();
      else end(CloseCode.NONE, "the event stream was lost");
    };
  }

  /** @param {View} view */
  function close(view) {
    const stream = streams.get(view);
    streams.delete(view);
    if (!stream) return;
    clock.clearTimeout(stream.timer);
    stream.source.onmessage = stream.source.onerror = null;
    stream.source.close();
  }

  return {
    subscribe(view) {
      streams.set(view, null);
      open(view).catch((error) => end(...closeReason(error)));
    },
    unsubscribe: close,
    get(jobId, subs) {
      fetchJob(request, jobId).then(
        (job) => job && receive({ type: "put", sub: subs, job_id: jobId, rev: job.rev, job }),
        (error) => end(...closeReason(error)),
      );
    },
    isReconnecting: () => [...streams.values()].some((stream) => stream?.isLost),
    close: () => [...streams.keys()].forEach(close),
  };
}
