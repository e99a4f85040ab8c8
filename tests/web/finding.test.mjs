// An ID that was copied with what stood around it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { idIn } from "../../correlator/web/page/route.js";

const UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb";
const EXTERNAL = "unified-live-failover-pgtest2-1758553933";

for (const id of [UUID, EXTERNAL]) {
  const decorated = [id, `"${id}"`, `'${id}',`, ` ${id}\n`, `job_id=${id}`, `"job_id": "${id}",`, `external_job_id: ${id}`, `(${id}).`,
    `https://a.example/api/v1/jobs/${id}`, `https://a.example/api/v1/jobs/${id}/events?after=3`, `https://a.example/#/i/dc1/jobs/${id}/log/36702`,
    `/jobs/${encodeURIComponent(id)}`, `\`${id}\``, `[${id}]`]; // prettier-ignore
  test(`${id} is found in ${decorated.length} texts`, () => {
    assert.deepEqual(decorated.map(idIn), decorated.map(() => id));
  });
}

test("a text without such a mark stays as it is", () => {
  for (const one of ["503", "disk full", "a/b", "dc1:job:7", "paid=3"]) {
    assert.equal(idIn(one), one);
  }
});
