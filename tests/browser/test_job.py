"""The page of one job, also of one that does not exist yet."""

from __future__ import annotations

import functools
import re
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.browser import expect
from tests.support.eventually import eventually
from tests.support.notifications import NOTIFICATIONS
from tests.support.page_server import document, forecast, stamp, step

UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"

SHIFTED_CLOCK = "window.shift = SHIFT; const real = Date.now.bind(Date); Date.now = () => real() + window.shift * 1000;"


def line(event_id: int, message: str, level: str = "INFO", *, ago: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "level": level,
        "message": message,
        "step_id": None,
        "attrs": None,
        "at": stamp(ago),
    } | more


def lines(page):
    return page.get_by_role("region", name="Log lines").get_by_role("listitem")


async def at_the_end(page) -> bool:
    pane = page.get_by_role("region", name="Log lines")
    return bool(
        await pane.evaluate("e => e.scrollHeight > e.clientHeight && e.scrollHeight - e.scrollTop - e.clientHeight < 2")
    )


def follows_only(fake, level: str) -> bool:
    """True if exactly one subscription has log lines, at this level."""
    return [wanted["logs"] for wanted in fake.subscriptions if "logs" in wanted] == [level]


def steps(page):
    return page.locator(".steps").get_by_role("listitem")


async def test_the_page_of_an_unknown_id_shows_its_job_without_a_reload(fake, page):
    name = "unified-live-failover-SVR 2019/Prod?#%-1758553933"
    await page.goto(f"{fake.url}/#/jobs/{quote(name, safe='')}")
    await expect(page.get_by_role("heading", name="Waiting for this ID")).to_be_visible()
    await expect(page.locator("code")).to_have_text(name)
    await page.evaluate("window.same = true")

    await fake.put(document(UUID, "running", external_ids=[name], metadata={"vm_name": "SVR 2019/Prod"}))
    await expect(page.get_by_role("heading", level=1)).to_have_text("SVR 2019/Prod")
    await expect(page.locator(".job-state")).to_contain_text("Running")
    await expect(page.get_by_role("status").last).to_have_text("SVR 2019/Prod has appeared: Running")

    await fake.put(document(UUID, "completed", external_ids=[name], metadata={"vm_name": "SVR 2019/Prod"}))
    await expect(page.locator(".job-state")).to_contain_text("Completed")
    await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    await expect(page.get_by_role("status").last).to_have_text("SVR 2019/Prod: Completed")
    await expect(page).to_have_title("Completed – SVR 2019/Prod – correlator")
    assert await page.evaluate("window.same")


async def test_a_failed_job_shows_its_error_and_its_failed_steps_in_full(fake, page):
    error = "rpc error: connection refused\n" + "very long " * 60
    fake.jobs[UUID] = document(
        UUID,
        "failed",
        error="final sync failed",
        steps={
            "11": step(2, "final-sync", "failed", error=error),
            "10": step(3, "boot", "skipped"),
            "12": step(1, "validation"),
        },
    )
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".failure")).to_contain_text("final sync failed")
    assert await steps(page).locator(".step-name").all_inner_texts() == ["validation", "final-sync", "boot"]
    assert await steps(page).locator(".step-word").all_inner_texts() == ["Completed", "Failed", "Skipped"]
    assert await steps(page).nth(1).locator("pre").inner_text() == error
    icon = await page.locator("link[rel=icon]").get_attribute("href")
    assert icon is not None
    assert icon.startswith("data:image/svg+xml")


async def test_a_completed_job_with_failed_steps_shows_both_facts(fake, page):
    fake.jobs[UUID] = document(UUID, "completed", steps=[step(1, "a"), step(2, "b", "failed", error="panic: nil map")])
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".job-state")).to_contain_text("Completed")
    await expect(page.locator(".job-state")).to_contain_text("with 1 failed step")
    await expect(steps(page).nth(1)).to_contain_text("panic: nil map")


async def test_bars_share_one_axis_and_the_bar_of_a_running_step_grows(fake, page):
    first, second = step(1, "a", ago=20, took=10), step(2, "b", "running", ago=10)
    fake.jobs[UUID] = document(UUID, "running", ago=20, steps=[first, second])
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    bars = page.locator(".span")
    await expect(bars).to_have_count(2)

    async def share(number: int, edge: str) -> float:
        return float(await bars.nth(number).evaluate(f"e => parseFloat(e.style.{edge})"))

    assert await share(0, "left") < 2
    assert abs(await share(1, "left") - await share(0, "width")) < 3
    before = await share(1, "width")

    async def grown() -> bool:
        return await share(1, "width") > before + 1

    await eventually(grown)
    took = steps(page).nth(1).locator(".step-took")
    before_text = await took.inner_text()
    await expect(took).not_to_have_text(before_text)


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
async def test_times_follow_the_daemons_clock_whenever_the_job_is_opened(fake, page, ahead):
    """The browser's clock is off by `ahead` seconds; the list stays open for `waited` seconds before the job is."""
    await page.add_init_script(SHIFTED_CLOCK.replace("SHIFT", str(ahead)))
    quiet = document(UUID, "running", ago=72 * 60 + 5, updated_at=stamp(68 * 60), last_event_at=stamp(68 * 60 + 5))
    fake.jobs[UUID] = quiet
    link = page.get_by_role("link", name=f"vm-{UUID}")
    for waited in (0, 5, 600):
        await page.goto(f"{fake.url}/?{waited}")
        await expect(link).to_be_visible()
        await page.evaluate(f"window.shift += {waited}")
        await fake.send(type="bookmark", seq=fake.seq, at=stamp(-waited))
        await link.click()
        minutes = 72 + waited // 60
        await expect(page.locator(".elapsed")).to_contain_text(f"1 h {minutes - 60:02} min")
        await expect(page.locator(".job-state")).to_contain_text(f"silent for 1 h {minutes - 64:02} min")


async def test_a_silent_job_shows_the_length_of_its_silence(fake, page):
    running = step(1, "final-sync", "running", ago=400)
    fake.jobs[UUID] = document(UUID, "running", ago=400, last_event_at=stamp(250), steps=[running])
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".job-state")).to_contain_text("silent for 4 min")
    await expect(page.locator(".lane .is-silent")).to_be_visible()
    await fake.put(document(UUID, "running", ago=900, last_event_at=stamp(720), stalled=True, steps=[running]))
    await expect(page.locator(".job-state")).to_contain_text("Stalled, silent for 12 min")
    await fake.put(document(UUID, "running", ago=900, last_event_at=stamp(0), steps=[running]))
    await expect(page.locator(".job-state")).not_to_contain_text("silent")


async def test_times_are_local_and_utc_in_the_title(fake, page):
    fake.jobs[UUID] = document(UUID, "running", started_at="2026-03-01T10:20:30.123456Z")
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    started = page.get_by_title("2026-03-01 10:20:30.123456 UTC")
    await expect(started).to_have_text("1 Mar, 10:20:30")


async def test_ids_can_be_copied_and_the_family_followed(fake, page, context):
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    fake.jobs["parent"] = document("parent", metadata={"group_name": "Group 7"})
    fake.jobs["child/1"] = document("child/1", "failed", metadata={"vm_name": "the child"})
    fake.jobs[UUID] = document(
        UUID,
        context_id="ctx-1",
        external_ids=["ext-1", "ext-2"],
        parent_job_id="parent",
        child_job_ids=["child/1", "gone"],
    )
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    for name in (UUID, "ext-1", "ext-2", "ctx-1"):
        await page.get_by_role("button", name=f"Copy {name}").click()
        assert await page.evaluate("navigator.clipboard.readText()") == name
    await expect(page.get_by_role("link", name="Group 7")).to_have_attribute("href", "#/jobs/parent")
    await expect(page.get_by_role("link", name="gone")).to_be_visible()
    await page.get_by_role("link", name="the child").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("the child")
    await page.go_back()
    await expect(page.get_by_role("link", name="the child")).to_be_visible()


async def test_log_lines_of_history_and_stream_are_one_list_ordered_by_time(fake, page):
    fake.jobs[UUID] = document(UUID, "running", steps=[step(1, "final-sync", "running")])
    fake.events[UUID] = [line(2, "second", ago=20), line(1, "first", ago=30, step_id=3001, attrs={"volume": "vol-1"})]
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(lines(page)).to_have_count(2)
    await fake.log(UUID, line(7, "fourth", ago=5), line(2, "second", ago=20))
    await fake.log(UUID, line(8, "third", "WARN", ago=10))
    await expect(lines(page)).to_have_count(4)
    texts = [text.split() for text in await lines(page).all_inner_texts()]
    order = ["first", "second", "third", "fourth"]
    assert [next(word for word in words if word in order) for words in texts] == order
    await expect(lines(page).first).to_contain_text("final-sync")
    await expect(lines(page).first).to_contain_text("volume=vol-1")


async def test_log_lines_of_other_days_show_their_date(fake, page):
    fake.jobs[UUID] = document(UUID, "running", ago=90_000)
    fake.events[UUID] = [line(1, "old", ago=86_400), line(2, "new", ago=0)]
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(lines(page).nth(0).locator(".line-at")).to_have_text(re.compile(r"^\d+ \w+, \d\d:\d\d:\d\d$"))
    await expect(lines(page).nth(1).locator(".line-at")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))


async def test_an_empty_page_of_history_before_its_end_is_skipped(fake, page):
    fake.jobs[UUID] = document(UUID, "completed")
    fake.events[UUID] = [line(1, "the only one", ago=30)]
    fake.empty_pages = 3
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(lines(page)).to_have_count(1)


async def test_lines_missed_during_an_outage_are_loaded_from_the_history(fake, page):
    fake.jobs[UUID] = document(UUID, "running")
    fake.events[UUID] = [line(1, "before", ago=20)]
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(lines(page)).to_have_count(1)
    await fake.stop()
    await expect(page.locator(".connection-state")).to_contain_text("Offline")
    fake.events[UUID].append(line(2, "meanwhile", ago=1))
    await fake.start()
    await expect(lines(page)).to_have_count(2)


async def test_scrolling_up_pauses_the_log_and_the_button_resumes_it(fake, page):
    fake.jobs[UUID] = document(UUID, "running")
    fake.events[UUID] = [line(n, f"line {n}", ago=300 - n) for n in range(1, 101)]
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    pane = page.get_by_role("region", name="Log lines")
    await eventually(lambda: at_the_end(page))
    await pane.evaluate("e => { e.scrollTop = 100 }")
    go_on = page.get_by_role("button", name="Paused")
    await expect(go_on).to_be_visible()
    in_sight = """e => [...e.querySelectorAll('li')]
        .find((li) => li.getBoundingClientRect().bottom > e.getBoundingClientRect().top + 1).dataset.id"""
    before = await pane.evaluate(in_sight)
    await fake.log(UUID, line(200, "new one"), line(201, "new two"))
    await expect(go_on).to_contain_text("2 new lines")
    assert await pane.evaluate(in_sight) == before
    await go_on.click()
    await eventually(lambda: at_the_end(page))
    await expect(go_on).to_have_count(0)
    await fake.log(UUID, line(202, "new three"))
    await expect(lines(page).last).to_contain_text("new three")
    await eventually(lambda: at_the_end(page))


async def test_the_level_can_be_chosen_and_dropped_lines_are_counted(fake, page):
    fake.jobs[UUID] = document(UUID, "running")
    fake.events[UUID] = [line(1, "quiet", "DEBUG", ago=9), line(2, "usual", ago=8), line(3, "odd", "WARN", ago=7)]
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(lines(page)).to_have_count(2)
    for level, count in {"DEBUG": 3, "WARN": 1, "INFO": 2}.items():
        await page.get_by_label("From level").select_option(level)
        await expect(lines(page)).to_have_count(count)
        await eventually(functools.partial(follows_only, fake, level))
    fake.events[UUID].append(line(4, "lost on the way"))
    sub = next(s["id"] for s in fake.subscriptions if "logs" in s)
    await fake.send(type="log", sub=[sub], dropped=7)
    await expect(page.locator(".log-notes")).to_contain_text("7 lines came too fast for this browser")
    await expect(lines(page)).to_have_count(3)


async def test_an_evicted_job_keeps_its_last_state_on_the_page(fake, page):
    fake.jobs[UUID] = document(UUID, "completed")
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".job-state")).to_contain_text("Completed")
    subs = [s["id"] for s in fake.subscriptions]
    await fake.send(type="delete", sub=subs, seq=fake.seq + 1, job_id=UUID, reason="retention")
    await expect(page.locator(".job-state")).to_contain_text("No longer in the correlator’s memory")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"vm-{UUID}")


async def test_cut_texts_and_incomplete_counts_are_marked(fake, page):
    fake.jobs[UUID] = document(
        UUID, "failed", error="the beginning", error_cut=2_000_000, counts_complete=False, warnings=7,
        metadata={"vm_name": "x", "_cut": {"blob": 18_000_000, "*": 1500}},
        steps=[step(1, "boot", "failed", error="panic", error_cut=20_000), step(2, "next", "failed", error="short")],
    )  # fmt: skip
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".failure")).to_contain_text("cut: 2 MB in full")
    await expect(steps(page).nth(0).locator("pre")).to_have_text("panic (cut: 20 kB in full)")
    await expect(steps(page).nth(1).locator("pre")).to_have_text("short")
    particulars = page.get_by_label("Particulars")
    await expect(particulars).to_contain_text("7 so far: the log is still being counted")
    for name, words in (("blob", "cut: 18 MB in full"), ("others", "cut: 1.5 kB in full")):
        await expect(particulars.locator("div").filter(has_text=name).last).to_contain_text(words)
    await expect(particulars).not_to_contain_text("_cut")


async def test_a_short_page_of_history_is_not_its_end(fake, page):
    fake.jobs[UUID] = document(UUID, "running")
    fake.events[UUID] = [line(n, f"line {n}", ago=300 - n) for n in range(1, 101)]
    fake.page = 7
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await eventually(lambda: at_the_end(page))

    async def begins_with_the_first() -> bool:
        await page.get_by_role("region", name="Log lines").evaluate("e => { e.scrollTop = 0 }")
        return bool((await lines(page).first.inner_text()).split()[-2:] == ["line", "1"])

    await eventually(begins_with_the_first)


async def test_a_notification_of_the_end_is_asked_for_by_a_click_and_comes_in_any_view(fake, page):
    await page.add_init_script(NOTIFICATIONS)
    fake.jobs.update({name: document(name) for name in ("a", "b")})
    await page.goto(f"{fake.url}/#/jobs/a")
    button = page.get_by_role("button", name="Notify me")
    await expect(button).to_have_attribute("aria-pressed", "false")
    assert await page.evaluate("asked") == 0
    await button.click()
    await expect(button).to_have_attribute("aria-pressed", "true")
    await page.get_by_role("link", name="All jobs", exact=True).click()
    await fake.put(document("b", "failed"))
    await fake.put(document("a", "failed", error="no space left\nat line 7"))
    await expect(page.get_by_role("listitem").filter(has_text="vm-a")).to_contain_text("no space left")
    await fake.put(document("a", "failed", error="corrected"))
    await expect(page.get_by_role("listitem").first).to_contain_text("corrected")
    assert await page.evaluate("[asked, notices]") == [1, [["vm-a: Failed", "no space left"]]]


async def test_a_notification_comes_while_the_page_is_hidden_for_more_than_30_seconds(fake, page):
    await page.clock.install()
    await page.add_init_script(NOTIFICATIONS)
    fake.jobs["a"] = document("a")
    await page.goto(f"{fake.url}/#/jobs/a")
    await page.get_by_role("button", name="Notify me").click()
    await expect(page.get_by_role("button", name="Notify me")).to_have_attribute("aria-pressed", "true")
    await eventually(lambda: fake.connections == 2)
    await page.evaluate("""Object.defineProperty(document, "visibilityState", { get: () => "hidden" });
                           document.dispatchEvent(new Event("visibilitychange"));""")
    await page.clock.fast_forward(31_000)
    await expect(page.locator(".connection-state")).to_contain_text("Paused")
    await fake.put(document("a", "failed", error="no space left"))
    await eventually(lambda: page.evaluate("notices.length"))
    assert await page.evaluate("notices") == [["vm-a: Failed", "no space left"]]
    await eventually(lambda: fake.connections == 0)


async def test_a_notification_comes_after_a_revoked_token_has_been_replaced(fake, page):
    await page.add_init_script(NOTIFICATIONS)
    fake.jobs["a"] = document("a")
    await page.goto(f"{fake.url}/#/jobs/a")
    await page.get_by_role("button", name="Notify me").click()
    await eventually(lambda: fake.connections == 2)
    fake.token = "second"
    await fake.stop()
    await fake.start()
    await page.get_by_label("Token").fill("second")
    await page.get_by_role("button", name="Connect").click()
    await eventually(lambda: fake.connections == 2)
    await fake.put(document("a", "failed"))
    await eventually(lambda: page.evaluate("notices.length === 1"))


async def test_titles_of_the_operation_and_of_steps_are_shown_instead_of_their_names(fake, page):
    steps = [step(1, "final-sync", "running", title="Final synchronisation")]
    fake.jobs["a"] = document(
        "a", steps=steps, title="Live failover", current_step_title="Final synchronisation"
    ) | {"forecast": forecast(ahead=[("boot", 0.9, 30.0)])}  # fmt: skip
    fake.jobs["a"]["forecast"]["steps_ahead"][0]["title"] = "Start of the VM"
    await page.goto(fake.url)
    row = page.get_by_role("list", name="Jobs").get_by_role("listitem")
    await expect(row).to_contain_text("Live failover")
    await expect(row).to_contain_text("Final synchronisation")
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(page.locator(".job-what")).to_have_text("Live failover · failover")
    await expect(page.locator(".steps")).to_contain_text("Start of the VM")
    await expect(page.locator("main")).not_to_contain_text("final-sync")


def of_many_steps(count: int, **more: Any) -> dict[str, Any]:
    steps = [
        step(n, f"step-{n}", "running" if n == count else "completed", ago=count + 10.0 - n, took=1.0)
        for n in range(1, count + 1)
    ]
    for n in range(9, count, 10):
        steps[n - 1] |= {"status": "failed", "error": "\n".join(["no space left on device"] * 5)}
    return document("many", steps=steps, ago=count + 10.0, **more)


async def test_of_thousands_of_steps_a_few_are_in_the_document_and_all_can_be_reached(fake, page):
    fake.jobs["many"] = of_many_steps(2000)
    await page.goto(f"{fake.url}/#/jobs/many")
    drawn = page.locator(".step-list > .step")
    await expect(drawn.first).to_have_attribute("aria-setsize", "2000")
    assert await drawn.count() < 150
    step_1600 = page.get_by_role("button", name="step-1600", exact=True)

    async def is_reached() -> bool:
        shown = await drawn.first.get_attribute("aria-posinset")
        await page.evaluate(f"scrollBy(0, innerHeight * {30 if int(shown or 0) < 1000 else 0.5})")
        return bool(await step_1600.count())

    await eventually(is_reached)
    await step_1600.scroll_into_view_if_needed()
    assert await drawn.count() < 150
    await step_1600.click()
    await expect(step_1600).to_have_attribute("aria-pressed", "true")
    await expect(page.get_by_role("combobox", name="Step")).to_have_value("4600")


async def test_what_is_in_sight_stays_while_higher_steps_above_are_drawn(fake, page):
    fake.jobs["many"] = of_many_steps(1000)
    await page.goto(f"{fake.url}/#/jobs/many")
    drawn = page.locator(".step-list > .step")
    await expect(drawn.first).to_have_attribute("aria-setsize", "1000")
    # A jump far down: all steps above are as high as assumed, until scrolling up draws them.
    await page.evaluate("scrollTo(0, 15000)")
    await expect(drawn.first).not_to_have_attribute("aria-posinset", "1")
    for _ in range(10):
        moved = await page.evaluate("""async () => {
            const frames = async (n) => { for (; n > 0; n -= 1) await new Promise(requestAnimationFrame); };
            await frames(3);
            const top = document.querySelector(".top").offsetHeight;
            const all = [...document.querySelectorAll(".step-list > .step")];
            const seen = all.find((each) => each.getBoundingClientRect().top > top + 300);
            const before = seen.getBoundingClientRect().top;
            scrollBy(0, -200);
            await frames(3);
            return seen.getBoundingClientRect().top - before;
        }""")
        assert abs(moved - 200) < 2


async def test_on_paper_there_are_a_thousand_steps(fake, page):
    fake.jobs["many"] = of_many_steps(1200)
    await page.goto(f"{fake.url}/#/jobs/many")
    drawn = page.locator(".step-list > .step")
    await expect(drawn.first).to_be_visible()
    printed = "dispatchEvent(new Event('beforeprint')); document.querySelectorAll('.step-list > .step').length"
    assert await page.evaluate(printed) == 1000
    await page.evaluate("dispatchEvent(new Event('afterprint'))")
    await expect(drawn).not_to_have_count(1000)
