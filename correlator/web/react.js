"use client";
/** React hooks on the connection that all parts of a page share. react.d.ts has their types and describes them. */

import { createContext, createElement, useContext, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { subscribe } from "./client.js";
import { JobLog, NO_LOG } from "./client/job_log.js";
import { UNCONNECTED } from "./client/notifier.js";

/** @import { SharedOptions, Update, Wanted } from "./client.js" */

const Server = createContext(/** @type {SharedOptions} */ ({}));

/** @type {Update} */
const NOTHING = Object.freeze({
  jobs: new Map(),
  job: null,
  changed: new Set(),
  unknown: [],
  synced: false,
  connection: UNCONNECTED,
});

/** @type {typeof import("./react.js").CorrelatorProvider} */
export function CorrelatorProvider({ server, token, children }) {
  const latest = useRef(token);
  useEffect(() => {
    latest.current = token;
  });
  // A function that is new at each render must not cause a new connection.
  const isFunction = typeof token === "function";
  const fixed = isFunction ? undefined : token;
  const value = useMemo(() => {
    const current = () => /** @type {() => string | Promise<string>} */ (latest.current)();
    return { url: server, token: isFunction ? current : fixed };
  }, [server, isFunction, fixed]);
  return createElement(Server.Provider, { value }, children);
}

/** @type {typeof import("./react.js").useJob} */
export function useJob(id) {
  return useJobs({ jobs: id === null ? [] : [id] });
}

/** @type {typeof import("./react.js").useJobs} */
export function useJobs(filter = {}) {
  // The filter as text, so that an inline one does not cause a new subscription at every render.
  return useStore(JSON.stringify(filter), follow, NOTHING);
}

/** @type {typeof import("./react.js").useJobLog} */
export function useJobLog(id, { level = "INFO", limit = 1000 } = {}) {
  return useStore(JSON.stringify({ id, level, limit }), followLog, NO_LOG);
}

/** @param {string} filter @param {SharedOptions} server @param {(update: Update) => void} show */
function follow(filter, server, show) {
  const subscription = subscribe(JSON.parse(filter), show, server);
  return () => subscription.close();
}

/** @param {string} wanted @param {SharedOptions} server @param {(state: typeof NO_LOG) => void} show */
function followLog(wanted, server, show) {
  const { id, ...options } = JSON.parse(wanted);
  if (id === null) return () => {};
  const log = new JobLog(id, { ...options, ...server }, () => show(log.state));
  return () => log.close();
}

/**
 * The last value that `start` has shown; `nothing` before the first, and on a server, where nothing is started.
 * @template T
 * @param {string} wanted
 * @param {(wanted: string, server: SharedOptions, show: (value: T) => void) => () => void} start
 * @param {T} nothing
 */
function useStore(wanted, start, nothing) {
  const server = useContext(Server);
  const store = useMemo(() => {
    let value = nothing;
    return {
      read: () => value,
      subscribe(/** @type {() => void} */ changed) {
        return start(wanted, server, (next) => {
          value = next;
          changed();
        });
      },
    };
  }, [wanted, server, start, nothing]);
  return useSyncExternalStore(store.subscribe, store.read, () => nothing);
}
