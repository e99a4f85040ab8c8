// A log of any length around the place that is shown: pages on demand, live lines, outages; no hole and no repeat.

import assert from "node:assert/strict";
import { test } from "node:test";
import { LogFeed, LogWindow, MOST_CHARACTERS } from "../../correlator/web/page/log_feed.js";

const MOST = 600;

const line = (id, { at = id, message = `line ${id}` } = {}) => ({
  event_id: id,
  at: new Date(1_758_553_933_000 + at).toISOString(),
  message,
  attrs: null,
});

/** The pages of a log with the IDs `first` to `last`, of which only every `one` matches the query. */
class Log {
  requests = 0;
  paused = null;

  constructor(last, one = 1) {
    Object.assign(this, { last, one });
  }

  page = async (place) => {
    this.requests += 1;
    const taken = this.last;
    await this.paused;
    const matching = (from, to) => {
      const ids = [];
      for (let id = Math.max(1, from); id <= to && ids.length < 500; id += 1) {
        if (id % this.one === 0) {
          ids.push(line(id));
        }
      }
      return ids;
    };
    if (place.before !== undefined) {
      const end = Math.min(place.before, taken + 1);
      const begin = Math.max(1, end - 500);
      return { events: matching(begin, end - 1), next_before: begin > 1 ? begin : null, more: begin > 1 };
    }
    const begin = place.from ?? Number(place.after);
    const end = Math.min(taken, begin + 499);
    return { events: matching(begin, end), next_after: String(Math.max(begin, end + 1)), more: end < taken };
  };

  /** Adds lines, and returns them as the stream would send them. */
  write(count) {
    const first = this.last + 1;
    this.last += count;
    return Array.from({ length: count }, (_, i) => line(first + i)).filter((one) => one.event_id % this.one === 0);
  }
}

function feedOf(log) {
  return new LogFeed(log.page, () => {}, MOST);
}

/** The IDs in the window, which must have no hole. */
function range(feed, one = 1) {
  const ids = feed.window.lines.map((each) => each.event_id);
  assert.ok(ids.length <= MOST, `${ids.length} lines`);
  for (const [index, id] of ids.entries()) {
    assert.ok(index === 0 || id === ids[index - 1] + one, `a hole before ${id}`);
  }
  return [ids[0], ids.at(-1)];
}

test("a log of a million lines is opened at its end with few requests, and live lines follow", async () => {
  const log = new Log(1_000_000);
  const feed = feedOf(log);
  await feed.openEnd();
  assert.ok(log.requests <= 3, `${log.requests} requests`);
  assert.deepEqual([range(feed)[1], feed.atEnd], [1_000_000, true]);
  await feed.live(log.write(3));
  await feed.live(log.write(2000));
  assert.equal(range(feed)[1], 1_002_003);
});

test("all of it can be scrolled through, back to its begin and forward to its end", async () => {
  const log = new Log(5000);
  const feed = feedOf(log);
  await feed.openEnd();
  feed.following = false;
  while (!feed.atStart) {
    await feed.earlier();
    range(feed);
  }
  assert.equal(range(feed)[0], 1);
  assert.equal(feed.atEnd, false);
  await feed.live(log.write(7));
  assert.equal(feed.unseen, 7);
  while (!feed.atEnd) {
    await feed.later();
    range(feed);
  }
  assert.deepEqual([range(feed)[1], feed.unseen], [5007, 0]);
});

test("that another place is opened is drawn at once, also while the same is being read", async () => {
  const log = new Log(10_000);
  const drawn = [];
  const feed = new LogFeed(log.page, () => drawn.push(feed.following), MOST);
  await feed.openAt(5_000);
  log.paused = new Promise(() => {});
  feed.following = true;
  feed.later();
  drawn.length = 0;
  feed.openStart();
  await null;
  assert.deepEqual(drawn, [false]);
});

test("one line is opened among its neighbours, also among few that match", async () => {
  for (const one of [1, 100, 2000]) { // of the last, most pages are empty
    const log = new Log(1_000_000, one);
    const feed = feedOf(log);
    await feed.openAt(500_000);
    const [first, last] = range(feed, one);
    assert.ok(feed.window.has(500_000));
    assert.ok(first < 500_000 && last > 500_000);
    assert.deepEqual([feed.atStart, feed.atEnd], [false, false]);
  }
});

test("lines that come while the last page is read are in the window once", async () => {
  const log = new Log(1000);
  const feed = feedOf(log);
  let release;
  log.paused = new Promise((resolve) => {
    release = resolve;
  });
  const opening = feed.openEnd();
  feed.live(log.write(3));
  log.paused = null;
  release();
  await opening;
  await feed.live(log.write(1));
  assert.equal(range(feed)[1], 1004);
});

test("lines of an outage are read from the history, and a long outage opens the log at its end", async () => {
  const log = new Log(1000);
  const feed = feedOf(log);
  await feed.openEnd();
  log.write(100);
  await feed.catchUp();
  assert.equal(range(feed)[1], 1100);
  await feed.live(log.write(1), 5);
  assert.equal(feed.dropped, 5);
  log.write(1_000_000);
  log.requests = 0;
  await feed.catchUp();
  assert.ok(log.requests <= 8, `${log.requests} requests`);
  assert.equal(range(feed)[1], 1_001_101);
});

test("while a user is further up, the lines in sight stay, however many come", async () => {
  const log = new Log(1000);
  const feed = feedOf(log);
  await feed.openEnd();
  feed.following = false;
  const [first] = range(feed);
  await feed.live(log.write(2000));
  await feed.catchUp();
  assert.equal(range(feed)[0], first);
  assert.equal(feed.atEnd, false);
  await feed.openEnd();
  assert.equal(range(feed)[1], 3000);
});

test("a failed request is reported, and the next connection tries again", async () => {
  const log = new Log(10);
  let fails = true;
  const feed = new LogFeed((place) => (fails ? Promise.reject(new Error("no database")) : log.page(place)), () => {});
  await feed.openEnd();
  assert.equal(feed.trouble, "no database");
  fails = false;
  await feed.catchUp();
  assert.deepEqual([feed.trouble, feed.window.lines.length], [null, 10]);
});

test("lines are evicted by their IDs, so that the rest is a range without a hole", () => {
  const window = new LogWindow(3);
  window.add([line(1, { at: 50 }), line(2, { at: 10 }), line(3), line(4), line(5)]);
  assert.equal(window.cutStart(), true);
  assert.deepEqual([window.lowest, window.lines.map((one) => one.event_id)], [3, [3, 4, 5]]);
  window.lowest = 1;
  window.add([line(1), line(2)]);
  assert.equal(window.cutEnd(), true);
  assert.deepEqual([window.highest, window.lines.map((one) => one.event_id)], [3, [1, 2, 3]]);
  assert.equal(window.cutEnd(), false);
});

test("huge lines are bounded by their characters", () => {
  const window = new LogWindow();
  for (let id = 1; id <= 40; id += 1) {
    window.add([line(id, { message: "x".repeat(1 << 20) })]);
    window.cutStart();
  }
  assert.equal(window.lines.length, MOST_CHARACTERS >> 20);
  assert.equal(window.highest, 40);
});

test("a page that may lack lines is remembered with its reason until another place is opened", async () => {
  const log = new Log(2000);
  const feed = new LogFeed(
    async (place) => ({ ...(await log.page(place)), complete: place.before !== 1501, reason: place.before === 1501 ? "unread times" : null }),
    () => {},
    MOST,
  );
  await feed.openEnd();
  assert.equal(feed.incomplete, null);
  await feed.earlier();
  assert.equal(feed.incomplete, "unread times");
  await feed.later();
  assert.equal(feed.incomplete, "unread times");
  await feed.openStart();
  assert.equal(feed.incomplete, null);
});
