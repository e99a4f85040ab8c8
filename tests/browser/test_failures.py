"""Why jobs failed: on the page of a job, in the list, and in the view of failures."""

from __future__ import annotations

from tests.support.browser import expect, heading, rows
from tests.support.page_server import document, failed, group_of, stamp, step

TRACE = "sync: vm-a: no space left on device\n" + "\n".join(f"    at frame{n}()" for n in range(18))


def copy_failed(job_id: str, error: str = "no space left on device", **more):
    return failed(job_id, f"sync: {error}", steps=[step(1, "check"), step(2, "copy", "failed", error=error)], **more)


def why(page):
    return page.locator(".failure")


async def test_a_failed_job_says_in_one_sentence_why_with_the_rest_of_its_error_folded(fake, page):
    fake.jobs["a"] = failed("a", TRACE, steps=[step(1, "check"), step(2, "copy", "failed", error=TRACE[6:])])
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(why(page).locator(".failure-sentence")).to_have_text("Step copy: no space left on device.")
    await expect(why(page).get_by_text("at frame17()")).to_be_hidden()
    await why(page).get_by_text("The whole error").click()
    await expect(why(page).get_by_text("at frame17()")).to_be_visible()
    item = page.locator(".steps").get_by_role("listitem").nth(1)
    await expect(item).not_to_contain_text("frame17")
    await item.get_by_role("button", name="more lines").click()
    await expect(item).to_contain_text("frame17")


async def test_a_failed_job_says_whether_it_is_known_what_operators_say_and_what_differs(fake, page):
    jobs = [copy_failed(name) for name in "abc"]
    fake.jobs["a"] = jobs[0]
    note = {"text": "The volume is full: see the runbook.", "link": "https://wiki.example/full"}
    fake.whys["a"] = {
        "group": group_of(*jobs, days=[(3, 55), (0, 2)], first_at=stamp(3 * 86_400), note=note),
        "burst": {"failed": 5, "alike": 4, "within_seconds": 40.0},
        "differs": {
            "runs": 20, "vm_name": "vm-a", "missing": ["snapshot"],
            "longer": [{"name": "check", "seconds": 300.0, "p90_seconds": 12.0}],
        },
    }  # fmt: skip
    await page.goto(f"{fake.url}/#/jobs/a")
    known = why(page).locator(".known")
    await expect(known).to_contain_text("Known: 57 times since")
    await expect(known).to_contain_text("on 3 VMs")
    await expect(known).to_contain_text("The volume is full: see the runbook.")
    assert await known.get_by_role("link", name="More about it").get_attribute("href") == note["link"]
    await expect(known).to_contain_text("5 jobs failed within 40 s, 4 of them with this text.")
    await expect(known).to_contain_text(
        "Compared with the last 20 completed runs on vm-a, a step is missing: snapshot."
    )
    await expect(known).to_contain_text("check took 5 min; in nine of ten")
    assert fake.asked_why == ["a"]


async def test_a_link_of_an_operator_that_is_no_web_address_is_no_link(fake, page):
    fake.jobs["a"] = copy_failed("a")
    fake.whys["a"] = {"group": group_of(fake.jobs["a"], note={"text": "Call Ann.", "link": "javascript:alert(1)"})}
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(why(page)).to_contain_text("Call Ann.")
    await expect(why(page).get_by_role("link", name="More about it")).to_have_count(0)


async def test_a_failure_that_is_new_says_since_when_and_one_without_a_reason_says_so(fake, page):
    fake.jobs["a"] = copy_failed("a", state="new")
    fake.jobs["b"] = failed("b", None)
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(why(page)).to_contain_text("New: no other job has failed like this since")
    await page.goto(f"{fake.url}/#/jobs/b")
    await expect(why(page)).to_contain_text("No reason was logged.")


async def test_a_job_that_fails_while_it_is_watched_says_why_once_its_tables_do(fake, page):
    fake.jobs["a"] = document("a")
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(heading(page)).to_have_text("vm-a")
    done = copy_failed("a")
    await fake.put(done | {"failure": None})
    await expect(why(page)).to_contain_text("sync: no space left on device")
    await fake.put(done)
    await expect(why(page).locator(".failure-sentence")).to_have_text("Step copy: no space left on device.")
    await expect(why(page).locator(".known")).to_be_visible()


async def test_the_list_shows_the_sentence_and_groups_failures_that_are_alike(fake, page):
    errors = {"a": "write /data/17: no space left on device", "b": "write /data/18: no space left on device"}
    fake.jobs |= {name: copy_failed(name, error) for name, error in errors.items()}
    fake.jobs["c"] = copy_failed("c", "connection refused")
    await page.goto(f"{fake.url}/")
    await expect(rows(page)).to_have_count(2)
    await expect(page.get_by_text("+ 1 equal failure")).to_be_visible()
    await expect(rows(page).filter(has_text="Step copy: connection refused.")).to_have_count(1)
    await page.get_by_role("link", name="Failures by kind").click()
    await expect(heading(page)).to_have_text("Failures")


async def test_the_failures_of_a_period_are_listed_by_kind_with_their_days(fake, page):
    full, away = copy_failed("a"), copy_failed("b", "connection refused")
    fake.failures = [[group_of(full, days=[(2, 4), (0, 1)])], [group_of(away)]]
    await page.goto(f"{fake.url}/#/failures")
    await expect(page.locator(".failures-since")).to_contain_text("5 jobs of 1 kind so far in")
    row = page.locator(".groups tbody tr").first
    await expect(row).to_contain_text("copy: no space left on device")
    await expect(row.get_by_role("img")).to_have_attribute("aria-label", f"{stamp(172_800)[:10]}: 4, {stamp()[:10]}: 1")
    await page.get_by_role("button", name="Load more").click()
    await expect(page.locator(".groups tbody tr")).to_have_count(2)
    await expect(page.locator(".failures-since")).to_contain_text("6 jobs of 2 kinds in")
    await page.get_by_label("Period").select_option("1d")
    await expect(page).to_have_url(f"{fake.url}/#/failures?since=1d")
    assert "1d" in [asked["since"] for asked in fake.sought]


async def test_one_failure_shows_its_jobs_its_texts_and_what_came_after(fake, page):
    job = copy_failed("a")
    other = copy_failed("b", "no inodes left on device")
    fake.failures = [[group_of(job), group_of(other)]]
    fingerprint = job["failure"]["fingerprint"]
    fake.failure_details[fingerprint] = {
        "variants": [{"text": "write /data/17: full", "count": 3}],
        "next_runs": {"examined": 4, "completed": 2, "failed_alike": 1, "failed_otherwise": 0, "unknown": 1,
                      "recovered_seconds": [60.0, 600.0, 120.0]},
        "similar": [{"fingerprint": other["failure"]["fingerprint"], "text": "no inodes left on device", "count": 2,
                     "word": "space", "other_word": "inodes"}],
    }  # fmt: skip
    await page.goto(f"{fake.url}/#/failures")
    await page.get_by_role("link", name="no space left").click()
    await expect(heading(page)).to_have_text("no space left on device")
    main = page.locator("main")
    await expect(main).to_contain_text("of 4: 2 completed (2 min later in the median), 1 failed alike")
    await expect(main).to_contain_text("write /data/17: full")
    await main.get_by_role("link", name="no inodes left").click()
    await expect(heading(page)).to_have_text("no inodes left on device")
    await page.goto(f"{fake.url}/#/failures/{'0' * 12}")
    await expect(main).to_contain_text("no job failed with the fingerprint")
