// Why a job failed, in one sentence.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { errorLine, sentence } from "../../correlator/web/page/sentence.js";

const CASES = JSON.parse(readFileSync(new URL("../data/sentences.json", import.meta.url)));

for (const { certainty, step, text, last, sentence: expected } of CASES) {
  test(`as in the terminal: ${expected}`, () => {
    const steps = last === null ? {} : { 1: { seq: 1, name: "first" }, 2: { seq: 2, name: last } };
    const said = sentence({ steps, failure: { fingerprint: "f", certainty, step, text } });
    assert.equal(said.filter(Boolean).join(" "), expected);
  });
}

test("a job without a failure has no sentence, and the first line of its error is its line", () => {
  assert.equal(sentence({ status: "completed" }), null);
  assert.equal(errorLine({ failure: null, error: " one\ntwo" }), "one");
  assert.equal(errorLine({ error: null }), "");
});

test("what nobody would see in a text is escaped, and a member that a patch removed is missing", () => {
  assert.equal(errorLine({ failure: { certainty: "stated", step: "a\u202eb", text: "c\u0007" } }), "Step a\\u202eb: c\\x07.");
  assert.equal(errorLine({ failure: { certainty: "apart", text: "lost" } }), "The job reports: lost.");
  assert.equal(errorLine({ error: null, failure: { certainty: "none", text: "" } }), "No reason was logged.");
});
