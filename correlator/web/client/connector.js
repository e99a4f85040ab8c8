/**
 * Keeps one connection for all views: chooses the transport, reconnects, and gives the messages to the replica.
 *
 * Problem: connections break, proxies block websockets, tokens expire, and a page is hidden for hours.
 *
 * Model: each connection is an `Attempt`. `#attempt` is the one in use; while it uses a fallback, `#trial` tries the
 * preferred transport from time to time and replaces it once it is welcomed. When an attempt ends, a timer starts the
 * next one after a `Backoff`, unless the token is refused or the page is hidden (`PageEvents`). The state is
 * `Connection.state`.
 */

import { State } from "./notifier.js";
import { CloseCode, closeReason, request } from "./requests.js";
import { DEAD_AFTER, TRANSPORTS, TransportChoice } from "./transports.js";

/** @import { Connection, Options } from "../client.js" */
/** @import { Notifier } from "./notifier.js" */
/** @import { Message, Replica, View } from "./replica.js" */
/** @import { Environment } from "./requests.js" */
/** @import { Link } from "./transports.js" */

const STABLE_AFTER = 5000; // ms; after a connection of this length the backoff starts again
const TRIAL_EVERY = 300_000;
const CLOCK_SAMPLES = 16;

export class Connector {
  /** @type {Attempt | null} */ #attempt = null;
  /** @type {Attempt | null} */ #trial = null;
  #tokenRenewed = false; // options.token was called again after a refusal, and nothing was opened since then
  /** @type {unknown} */ #retryTimer = null;
  /** @type {unknown} */ #trialTimer = null;
  /** @type {number[]} ms that the daemon's clock was ahead, one for each of the last messages */ #clockSamples = [];
  #options;
  #environment;
  #clock;
  #replica;
  #notifier;
  #choice;
  #backoff;
  #pageEvents;

  /**
   * @param {Options} options
   * @param {Environment} environment
   * @param {Replica} replica
   * @param {Notifier} notifier
   */
  constructor(options, environment, replica, notifier) {
    this.#options = options;
    this.#environment = environment;
    this.#clock = environment.clock;
    this.#replica = replica;
    this.#notifier = notifier;
    this.#choice = new TransportChoice(options.transports ?? Object.keys(TRANSPORTS), environment);
    this.#backoff = new Backoff(environment.clock);
    const onPause = options.pauseWhenHidden === false ? null : this.#pause;
    this.#pageEvents = new PageEvents(environment.clock, onPause, this.#wake);
  }

  /** Subscribes a new view; the first one starts the connection. @param {View} view */
  subscribe(view) {
    const attempt = this.#attempt;
    const isIdle = attempt === null && this.#notifier.connection.state === State.CONNECTING;
    if (isIdle || (attempt !== null && this.#fitting(attempt.transport) !== attempt.transport)) this.#connect();
    else attempt?.readyLink?.subscribe(view, false);
  }

  /** @param {View} view */
  unsubscribe(view) {
    this.#attempt?.readyLink?.unsubscribe(view);
  }

  close() {
    this.#stop();
    this.#pageEvents.close();
  }

  // -- Connect.

  #connect() {
    this.#stop();
    this.#attempt = this.#start(this.#choice.current);
    this.#notifier.setConnection({ state: State.CONNECTING, transport: null, retry_at: null });
    this.#open(this.#attempt);
  }

  /** @param {string} transport */
  #start(transport) {
    return new Attempt(this.#fitting(transport), this.#clock, {
      expectsMessages: () => this.#replica.views.size > 0,
      stale: (attempt) => attempt === this.#attempt && this.#notifier.setConnection({ state: State.STALE }),
      dead: (attempt, silence) =>
        this.#ended(attempt, CloseCode.NONE, `no message for ${Math.round(silence / 1000)} s`),
    });
  }

  /** @param {string} transport */
  #fitting(transport) {
    return this.#choice.fitting(transport, this.#replica.views.size);
  }

  /** @param {Attempt} attempt */
  async #open(attempt) {
    try {
      const { token: given } = this.#options;
      const token = (attempt.token = typeof given === "function" ? await given() : given);
      // While the token was awaited, the client may have been closed, paused or reconnected.
      if (attempt.hasEnded) return;
      // Without a position the welcome changes nothing. A trial does not get to know of changes to the views before it.
      const isFresh = attempt === this.#attempt && this.#replica.position === null;
      const first = isFresh ? [...this.#replica.views.values()] : null;
      const link = TRANSPORTS[attempt.transport]({
        environment: this.#environment,
        token,
        position: () => this.#replica.position,
        request: async (path, init) => {
          const response = await request(this.#environment, token, path, init);
          if (attempt.transport === "poll" && !attempt.hasEnded) this.#compareClocks(response.headers.get("Date"));
          return response;
        },
        receive: (message, view) => this.#receive(attempt, message, view),
        first,
        streamLost: () => attempt === this.#attempt && this.#notifier.setConnection({ state: State.CONNECTING }),
        end: (code, reason) => this.#ended(attempt, code, reason),
      });
      attempt.link = link;
      if (attempt.transport !== "websocket") this.#subscribeAll(attempt, false);
      else attempt.isSubscribed = isFresh;
    } catch (error) {
      this.#ended(attempt, CloseCode.NONE, closeReason(error)[1]);
    }
  }

  /** @param {Attempt} attempt @param {boolean} resumed */
  #subscribeAll(attempt, resumed) {
    attempt.isSubscribed = true;
    for (const view of this.#replica.views.values()) attempt.link?.subscribe(view, resumed && view.resumable);
  }

  // -- Receive.

  /** @param {Attempt} attempt @param {Message} message @param {View} [view]  the view whose stream it arrived on */
  #receive(attempt, message, view) {
    if (attempt.hasEnded) return;
    attempt.received();
    if (message.type === "welcome") {
      this.#welcomed(attempt, message, view);
      return;
    }
    if (message.type === "bye") {
      attempt.bye = message;
      // The daemon closes a websocket with a code and a reason. An event stream has no close code.
      if (attempt.transport !== "websocket") {
        this.#ended(attempt, message.code, "the daemon closed the stream");
        return;
      }
    }
    if (attempt !== this.#attempt) return;
    if (message.type === "bookmark") this.#compareClocks(message.at);
    if (message.type === "status") {
      const { source, lag_seconds: lag = 0, error = null } = message;
      this.#notifier.setConnection({ source, lag_seconds: lag, error });
    }
    if (message.type === "synced") this.#tokenRenewed = false;
    if (message.type === "error" && message.code !== "not_found" && message.code !== "forbidden") {
      this.#notifier.setConnection({ error: `${message.code}: ${message.detail}` });
    }
    for (const missing of this.#replica.receive(message)) attempt.link?.get(missing, message.sub ?? []);
    if (message.type === "error" && this.#replica.isRefused) {
      this.#ended(attempt, CloseCode.FORBIDDEN, message.detail);
      return;
    }
    if (attempt.isWelcomed) this.#notifier.setConnection({ state: this.#stateOf(attempt) });
    this.#notifier.schedule();
  }

  /** The state after a message. @param {Attempt} attempt */
  #stateOf({ link }) {
    if (link?.isReconnecting?.()) return State.CONNECTING;
    const { source } = this.#notifier.connection;
    return source === null || source === "live" ? State.LIVE : State.STALE;
  }

  /** @param {Attempt} attempt @param {Message} message @param {View} [view] */
  #welcomed(attempt, message, view) {
    if (attempt === this.#trial) {
      this.#trial = null;
      this.#attempt?.end();
      this.#attempt = attempt;
      this.#choice.use(attempt.transport);
    }
    const isFirst = attempt.welcome();
    if (isFirst && attempt.transport !== "poll") this.#clockSamples = []; // a clock may have been set since then
    this.#compareClocks(message.at);
    this.#choice.welcomed();
    const resumed = message.resumed === true;
    this.#replica.welcome(message.epoch, resumed, attempt.transport === "websocket");
    for (const each of view === undefined ? this.#replica.views.values() : [view]) each.expect();
    if (!attempt.isSubscribed) this.#subscribeAll(attempt, resumed);
    if (isFirst) {
      const transport = /** @type {Connection["transport"]} */ (attempt.transport);
      this.#notifier.setConnection({ transport, source: null, lag_seconds: 0, error: null });
      this.#notifier.setConnection({ state: this.#stateOf(attempt) });
      this.#scheduleTrial();
    }
  }

  /**
   * Estimates how far the daemon's clock is ahead. A message with the daemon's time arrives late by its latency and
   * never early, so the largest of the last differences is the best estimate.
   * @param {unknown} at
   */
  #compareClocks(at) {
    const ahead = typeof at === "string" ? Date.parse(at) - this.#clock.now() : Number.NaN;
    if (Number.isNaN(ahead)) return;
    this.#clockSamples = [...this.#clockSamples.slice(1 - CLOCK_SAMPLES), ahead];
    this.#notifier.setConnection({ ahead_ms: Math.max(...this.#clockSamples) });
  }

  // -- Reconnect.

  /** @param {Attempt} attempt @param {number} closeCode @param {string} reason */
  #ended(attempt, closeCode, reason) {
    if (attempt.hasEnded) return;
    attempt.end();
    if (attempt === this.#trial) {
      this.#trial = null;
      this.#scheduleTrial();
      return;
    }
    this.#attempt = null;
    const code = isLost(closeCode) && attempt.bye !== null ? attempt.bye.code : closeCode;
    this.#notifier.setConnection({ transport: null, error: reason });
    if (isRefusal(code)) {
      this.#refused();
      return;
    }
    const { welcomedAt } = attempt;
    const now = this.#clock.now();
    const isBlocked = welcomedAt === null && !isFromDaemon(code) && attempt.link !== null;
    if (isBlocked && this.#choice.available.length > 1) this.#chooseTransport(attempt);
    if (welcomedAt !== null && now - welcomedAt >= STABLE_AFTER) this.#backoff.reset();
    const delay = this.#backoff.delay(code, attempt.bye?.retry_ms);
    this.#notifier.setConnection({ state: State.OFFLINE, retry_at: now + delay });
    this.#retryTimer = this.#clock.setTimeout(() => this.#connect(), delay);
  }

  /** A token function is called once more; any other refusal is final. */
  #refused() {
    if (typeof this.#options.token !== "function" || this.#tokenRenewed) {
      this.#notifier.setConnection({ state: State.REFUSED });
    } else {
      this.#tokenRenewed = true;
      this.#connect();
    }
  }

  /** Chooses the transport after an attempt that was not welcomed. @param {Attempt} attempt */
  async #chooseTransport(attempt) {
    const isReachable = await this.#isReachable(attempt.token);
    if (!this.#attempt?.isWelcomed) this.#choice.failed(isReachable);
  }

  /** @param {string | undefined} token */
  async #isReachable(token) {
    if (this.#environment.fetch === undefined) return false;
    try {
      return (await request(this.#environment, token, "api/v1/jobs?limit=1")).ok;
    } catch (error) {
      return isRefusal(closeReason(error)[0]);
    }
  }

  /** While a fallback is in use, tries the preferred transport every TRIAL_EVERY ms. */
  #scheduleTrial() {
    this.#clock.clearTimeout(this.#trialTimer);
    if (this.#choice.current === this.#choice.preferred) return;
    this.#trialTimer = this.#clock.setTimeout(() => {
      this.#trial = this.#start(this.#choice.preferred);
      this.#open(this.#trial);
    }, TRIAL_EVERY);
  }

  #stop() {
    this.#attempt?.end();
    this.#trial?.end();
    this.#attempt = this.#trial = null;
    this.#clock.clearTimeout(this.#retryTimer);
    this.#clock.clearTimeout(this.#trialTimer);
  }

  // -- Pause while the page is hidden, and wake up.

  #pause = () => {
    if (this.#notifier.connection.state === State.REFUSED) return;
    this.#stop();
    this.#notifier.setConnection({ state: State.PAUSED, transport: null, retry_at: null });
  };

  #wake = () => {
    const { state } = this.#notifier.connection;
    if (state === State.OFFLINE || (state === State.PAUSED && !isHidden())) this.#connect();
  };
}

// -- One attempt to connect: from its start until the connection has ended.

/** @typedef {import("./requests.js").Environment["clock"]} Clock */

const WELCOME_WITHIN = 15_000; // ms
const STALE_AFTER = 25_000; // ms; the daemon sends a bookmark every 10 s

const Phase = Object.freeze({
  /** The token is awaited, or the daemon's welcome. */ CONNECTING: "connecting",
  WELCOMED: "welcomed",
  ENDED: "ended",
});

/**
 * What an attempt reports.
 * @typedef {object} Observer
 * @property {() => boolean} expectsMessages  false without a view: then no stream is silent
 * @property {(attempt: Attempt) => void} stale  no message arrived for STALE_AFTER ms
 * @property {(attempt: Attempt, silence: number) => void} dead  none arrived for `silence` ms
 */

class Attempt {
  /** @type {typeof Phase[keyof typeof Phase]} */ #phase = Phase.CONNECTING;
  /** @type {Link | null} */ link = null;
  /** All views are subscribed: by a websocket that may resume, only after the welcome, which says whether it does. */
  isSubscribed = false;
  /** @type {string | undefined} */ token;
  /** @type {number | null} ms since 1970 */ welcomedAt = null;
  /** @type {Message | null} */ bye = null;
  #lastMessageAt;
  /** @type {unknown} */ #timer;
  #clock;
  #observer;

  /** @param {string} transport @param {Clock} clock @param {Observer} observer */
  constructor(transport, clock, observer) {
    this.transport = transport;
    this.#clock = clock;
    this.#observer = observer;
    this.#lastMessageAt = clock.now();
    this.#checkSilence();
  }

  get isWelcomed() {
    return this.#phase === Phase.WELCOMED;
  }

  get hasEnded() {
    return this.#phase === Phase.ENDED;
  }

  /** The link, if it accepts subscriptions. */
  get readyLink() {
    return this.isSubscribed ? this.link : null;
  }

  received() {
    this.#lastMessageAt = this.#clock.now();
  }

  /** @returns {boolean} true for the first welcome; each event stream has one */
  welcome() {
    const isFirst = this.welcomedAt === null;
    this.welcomedAt ??= this.#clock.now();
    this.#phase = Phase.WELCOMED;
    return isFirst;
  }

  end() {
    this.#phase = Phase.ENDED;
    this.#clock.clearTimeout(this.#timer);
    this.link?.close();
  }

  #checkSilence() {
    if (!this.#observer.expectsMessages()) this.received();
    const silence = this.#clock.now() - this.#lastMessageAt;
    const [warn, most] = this.isWelcomed ? [STALE_AFTER, DEAD_AFTER] : [Infinity, WELCOME_WITHIN];
    if (silence >= most) {
      this.#observer.dead(this, silence);
      return;
    }
    if (silence > warn) this.#observer.stale(this);
    const due = (silence > warn ? most : Math.min(warn + 1, most)) - silence;
    this.#timer = this.#clock.setTimeout(() => this.#checkSilence(), due);
  }
}

// -- When to connect again, by the close code of docs/protocol.md. No clock, no I/O.

const BACKOFF = 500; // ms
const MAX_BACKOFF = 20_000;
const RESTART_WITHIN = [0, 5000]; // ms; used if the daemon restarts without sending its own range in a bye

/** @type {number[]} a quick retry would fail in the same way */
const CLIENT_ERRORS = [CloseCode.TOO_LARGE, CloseCode.BAD_PROTOCOL];

/** The token or the origin is not accepted. @param {number} code */
function isRefusal(code) {
  return code === CloseCode.UNAUTHORISED || code === CloseCode.FORBIDDEN;
}

/** No close frame was received. @param {number} code */
function isLost(code) {
  return code === CloseCode.NONE || code === CloseCode.NO_STATUS || code === CloseCode.ABNORMAL;
}

/** The daemon sent this code, so no proxy blocks the connection. @param {number} code */
function isFromDaemon(code) {
  return code === CloseCode.TOO_LARGE || code === CloseCode.RESTART || code === CloseCode.TRY_LATER || code >= 4000;
}

/** Exponential backoff with full jitter, so that a thousand clients do not reconnect together. */
class Backoff {
  #failures = 0;

  #clock;

  /** @param {{random(): number}} clock */
  constructor(clock) {
    this.#clock = clock;
  }

  reset() {
    this.#failures = 0;
  }

  /**
   * Milliseconds until the next attempt.
   * @param {number} code
   * @param {unknown} within  `retry_ms` of a bye, if there was one
   */
  delay(code, within) {
    if (code === CloseCode.RESTART) {
      const isRange = Array.isArray(within) && within.length === 2 && within.every(Number.isFinite);
      const [least, most] = isRange ? within : RESTART_WITHIN;
      return least + this.#clock.random() * (most - least);
    }
    const most = CLIENT_ERRORS.includes(code) ? MAX_BACKOFF : Math.min(MAX_BACKOFF, BACKOFF * 2 ** this.#failures++);
    return this.#clock.random() * most;
  }
}

// -- The events of the page that the connection depends on: hidden for PAUSE_AFTER ms, shown, online.

const PAUSE_AFTER = 30_000; // ms

function isHidden() {
  return globalThis.document?.visibilityState === "hidden";
}

class PageEvents {
  #clock;
  #onPause;
  #onWake;
  /** @type {unknown} */ #timer = null;

  /**
   * @param {import("./requests.js").Environment["clock"]} clock
   * @param {(() => void) | null} onPause  null: a hidden page does not pause
   * @param {() => void} onWake  the page was shown, or the network is back
   */
  constructor(clock, onPause, onWake) {
    this.#clock = clock;
    this.#onPause = onPause;
    this.#onWake = onWake;
    globalThis.addEventListener?.("online", onWake);
    globalThis.document?.addEventListener("visibilitychange", this.#visibilityChanged);
    this.#visibilityChanged();
  }

  close() {
    this.#clock.clearTimeout(this.#timer);
    globalThis.removeEventListener?.("online", this.#onWake);
    globalThis.document?.removeEventListener("visibilitychange", this.#visibilityChanged);
  }

  #visibilityChanged = () => {
    this.#clock.clearTimeout(this.#timer);
    if (!isHidden()) this.#onWake();
    else if (this.#onPause !== null) this.#timer = this.#clock.setTimeout(this.#onPause, PAUSE_AFTER);
  };
}
