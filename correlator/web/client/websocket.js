/** The transport `websocket`: one connection for all subscriptions, with resume. */

import { decode } from "./messages.js";

/** @import { Link, TransportContext } from "./transports.js" */

/** @param {TransportContext} context @returns {Link} */
export function websocket({ environment, token, position, receive, end }) {
  const url = new URL("ws", environment.base);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new environment.WebSocket(url.href);
  /** @param {object} message */
  const send = (message) => {
    if (socket.readyState === 1) socket.send(JSON.stringify(message));
  };
  socket.onopen = () => send({ type: "hello", version: 1, token, resume: position() ?? undefined });
  socket.onmessage = (/** @type {{data: string}} */ event) => decode(event.data, receive, end);
  socket.onclose = (/** @type {{code: number, reason: string}} */ event) =>
    end(event.code, event.reason || `the connection was lost (${event.code})`);
  socket.onerror = () => {}; // `close` follows with the reason
  return {
    subscribe: (view, resume) => send({ ...view.wanted, type: "subscribe", id: view.id, resume }),
    unsubscribe: (view) => send({ type: "unsubscribe", id: view.id }),
    get: (jobId) => send({ type: "get", job_id: jobId }),
    close() {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    },
  };
}
