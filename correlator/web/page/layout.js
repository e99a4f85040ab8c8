/**
 * Where each line of a list is, in pixels, if only those in sight are drawn: lines of a log, steps. Pure.
 *
 * Lines wrap, so their heights differ: a line has its estimated height until it has been drawn and measured.
 */

const MOST_HEIGHTS = 20_000;

export class Layout {
  #heights = new Map();
  #offsets = new Float64Array(1);
  #ids = [];
  #places = new Map();
  #estimate;

  constructor(estimate) {
    this.#estimate = estimate;
  }

  /** The height of all lines. */
  get height() {
    return this.#offsets[this.#ids.length];
  }

  /** Forgets all heights, because the width has changed. */
  clear() {
    this.#heights.clear();
  }

  /** `ids`: those of the lines, in their order. */
  arrange(ids) {
    if (ids.length !== this.#ids.length) {
      this.#offsets = new Float64Array(ids.length + 1);
    }
    this.#ids = ids;
    this.#places.clear();
    for (const [index, id] of ids.entries()) {
      this.#places.set(id, index);
      this.#offsets[index + 1] = this.#offsets[index] + (this.#heights.get(id) ?? this.#estimate);
    }
  }

  /** Stores the measured height of a line. True if it was another one. */
  measured(id, height) {
    if (this.#heights.get(id) === height) {
      return false;
    }
    if (this.#heights.size >= MOST_HEIGHTS) {
      this.#heights.clear();
    }
    this.#heights.set(id, height);
    return true;
  }

  /** The top of a line; null if it is not in the list. */
  top(id) {
    const index = this.#places.get(id);
    return index === undefined ? null : this.#offsets[index];
  }

  /** The line at this height; undefined if there is none. */
  at(y) {
    return this.#ids[this.#index(y)];
  }

  #index(y) {
    let [low, high] = [0, Math.max(0, this.#ids.length - 1)];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#offsets[middle] <= y) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  /** The lines between two heights: their first index, the one after the last, and the space above and below them. */
  between(top, bottom) {
    if (this.#ids.length === 0) {
      return { first: 0, end: 0, above: 0, below: 0 };
    }
    const first = this.#index(top);
    const end = this.#index(bottom) + 1;
    return { first, end, above: this.#offsets[first], below: this.height - this.#offsets[end] };
  }
}
