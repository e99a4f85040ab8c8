/** The events of the page that the connection depends on: hidden for PAUSE_AFTER ms, shown, online. */

const PAUSE_AFTER = 30_000; // ms

export function isHidden() {
  return globalThis.document?.visibilityState === "hidden";
}

export class PageEvents {
  #clock;
  #onPause;
  #onWake;
  /** @type {unknown} */ #timer = null;

  /**
   * @param {import("./environment.js").Environment["clock"]} clock
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
