"""The page of one job, also of one that does not exist yet."""

from __future__ import annotations

import functools
import re
from typing import Any

from tests.support.browser import expect, heading, lines, rows
from tests.support.eventually import eventually
from tests.support.page_server import document, forecast, line, serving, stamp, step

UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
REORDERING, SHOWN = "ab\u202edc\x1b[31m", "ab\\u202edc\\x1b[31m"
NOTIFICATIONS = """
    window.asked = 0; window.notices = [];
    window.Notification = class {
      static permission = "default";
      static requestPermission() { asked += 1; return Promise.resolve("granted"); }
      constructor(title, options) { notices.push([title, options.body]); }
      close() {}
    };
"""
"""A script for a page: `asked` counts the requests for the permission, `notices` has title and body of each."""


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


async def test_errors_of_a_job_and_its_steps_are_shown_in_full_or_marked_as_cut(fake, page):
    error = "rpc error: connection refused\n" + "very long " * 60
    cut = step(1, "validation", "failed", error="panic", error_cut=20_000)
    fake.jobs[UUID] = document(
        UUID, "failed", error="final sync failed", error_cut=2_000_000, counts_complete=False, warnings=7,
        metadata={"vm_name": "x", "_cut": {"blob": 18_000_000, "*": 1500}},
        steps={"11": step(2, "final-sync", "failed", error=error), "10": step(3, "boot", "skipped"), "12": cut},
    )  # fmt: skip
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".failure")).to_contain_text("final sync failed")
    await expect(page.locator(".failure")).to_contain_text("cut: 2 MB in full")
    assert await steps(page).locator(".step-name").all_inner_texts() == ["validation", "final-sync", "boot"]
    assert await steps(page).locator(".step-word").all_inner_texts() == ["Failed", "Failed", "Skipped"]
    await expect(steps(page).nth(0).locator("pre")).to_have_text("panic (cut: 20 kB in full)")
    assert await steps(page).nth(1).locator("pre").inner_text() == error
    particulars = page.get_by_label("Particulars")
    await expect(particulars).to_contain_text("7 so far: the log is still being counted")
    for name, words in (("blob", "cut: 18 MB in full"), ("others", "cut: 1.5 kB in full")):
        await expect(particulars.locator("div").filter(has_text=name).last).to_contain_text(words)
    await expect(particulars).not_to_contain_text("_cut")
    icon = await page.locator("link[rel=icon]").get_attribute("href")
    assert str(icon).startswith("data:image/svg+xml")

    await fake.put(document(UUID, "completed", steps=[step(2, "b", "failed", error="panic: nil map")]))
    await expect(page.locator(".job-state")).to_contain_text("Completed")
    await expect(page.locator(".job-state")).to_contain_text("with 1 failed step")
    await expect(steps(page)).to_contain_text("panic: nil map")
    await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")

    subs = [s["id"] for s in fake.subscriptions]
    await fake.send(type="delete", sub=subs, seq=fake.seq + 1, job_id=UUID, reason="retention")
    await expect(page.locator(".job-state")).to_contain_text("No longer in the correlator’s memory")
    await expect(heading(page)).to_have_text(f"vm-{UUID}")


async def test_the_bar_of_a_running_step_grows_and_a_silent_job_shows_the_length_of_its_silence(fake, page):
    first, second = step(1, "a", ago=20, took=10), step(2, "b", "running", ago=10)
    await fake.put(document(UUID, "running", ago=20, steps=[first, second]))
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    bars = page.locator(".span")
    await expect(bars).to_have_count(2)

    async def share(number: int, edge: str) -> float:
        return float(await bars.nth(number).evaluate(f"e => parseFloat(e.style.{edge})"))

    assert await share(0, "left") < 2
    assert abs(await share(1, "left") - await share(0, "width")) < 3
    before = await share(1, "width")
    took = steps(page).nth(1).locator(".step-took")
    before_text = await took.inner_text()

    async def grown() -> bool:
        return await share(1, "width") > before + 1

    await eventually(grown)
    await expect(took).not_to_have_text(before_text)

    running = step(1, "final-sync", "running", ago=400)
    await fake.put(document(UUID, "running", ago=400, last_event_at=stamp(250), steps=[running]))
    await expect(page.locator(".job-state")).to_contain_text("silent for 4 min")
    await expect(page.locator(".lane .is-silent")).to_be_visible()
    await page.set_viewport_size({"width": 390, "height": 844})
    await fake.put(document(UUID, "running", ago=9000, last_event_at=stamp(8400), stalled=True, steps=[running]))
    await expect(page.locator(".job-state")).to_contain_text("Stalled, silent for 2 h 20 min")
    await expect(page.locator(".axis-break")).to_contain_text("2 h 20 min of silence")
    right = "e => e.getBoundingClientRect().right"
    assert await page.locator(".axis-break").evaluate(right) <= await page.locator(".axis-line").evaluate(right)
    await fake.put(document(UUID, "running", ago=900, last_event_at=stamp(0), steps=[running]))
    await expect(page.locator(".job-state")).not_to_contain_text("silent")
    await expect(page.locator(".axis-break")).to_have_count(0)


async def test_times_follow_the_daemons_clock_whenever_the_job_is_opened(fake, page):
    """The browser's clock is an hour ahead; the list stays open for `waited` seconds before the job is."""
    shifted = "window.shift = 3600; const real = Date.now.bind(Date); Date.now = () => real() + window.shift * 1000;"
    await page.add_init_script(shifted)
    quiet = document(UUID, "running", ago=72 * 60 + 5, updated_at=stamp(68 * 60), last_event_at=stamp(68 * 60 + 5))
    fake.jobs[UUID] = quiet
    link = page.get_by_role("link", name=f"vm-{UUID}")
    for waited in (0, 600):
        await page.goto(f"{fake.url}/?{waited}")
        await expect(link).to_be_visible()
        await page.evaluate(f"window.shift += {waited}")
        await fake.send(type="bookmark", seq=fake.seq, at=stamp(-waited))
        await link.click()
        minutes = 72 + waited // 60
        await expect(page.locator(".elapsed")).to_contain_text(f"1 h {minutes - 60:02} min")
        await expect(page.locator(".job-state")).to_contain_text(f"silent for 1 h {minutes - 64:02} min")


async def test_ids_can_be_copied_and_the_family_followed(fake, page):
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
    await expect(heading(page)).to_have_text("the child")
    await page.go_back()
    await expect(page.get_by_role("link", name="the child")).to_be_visible()


async def test_log_lines_of_history_and_stream_are_one_list_ordered_by_time(fake, page):
    fake.jobs[UUID] = document(UUID, "running", ago=90_000, steps=[step(1, "final-sync", "running")])
    fake.events[UUID] = [
        line(2, "second", ago=20),
        line(1, "first", ago=86_400, step_id=3001, attrs={"volume": "vol-1"}),
    ]
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
    await expect(lines(page).first.locator(".line-at")).to_have_text(re.compile(r"^\d+ \w+, \d\d:\d\d:\d\d$"))
    await expect(lines(page).last.locator(".line-at")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))


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


async def test_a_notification_is_asked_for_by_a_click_and_comes_in_any_view(fake, browser):
    context = await browser.new_context()
    page = await context.new_page()
    await page.clock.install()
    await page.add_init_script(NOTIFICATIONS)
    names = {"a": REORDERING, "b": "b", "c": "c"}
    fake.jobs.update({job: document(job, metadata={"vm_name": name}) for job, name in names.items()})
    button = page.get_by_role("button", name="Notify me")
    for job in "ca":
        await page.goto(f"{fake.url}/#/jobs/{job}")
        await expect(button).to_have_attribute("aria-pressed", "false")
        await button.click()
        await expect(button).to_have_attribute("aria-pressed", "true")
    await page.get_by_role("link", name="All jobs", exact=True).click()
    await fake.put(document("b", "failed"))
    await fake.put(document("a", "failed", metadata={"vm_name": REORDERING}, error=f"no space {REORDERING}\nat line 7"))
    await expect(rows(page).first).to_contain_text("no space")
    await fake.put(document("a", "failed", error="corrected"))
    await expect(rows(page).first).to_contain_text("corrected")
    first = [f"{SHOWN}: Failed", f"no space {SHOWN}"]
    assert await page.evaluate("[asked, notices]") == [2, [first]]

    await page.evaluate("""Object.defineProperty(document, "visibilityState", { get: () => "hidden" });
                           document.dispatchEvent(new Event("visibilitychange"));""")
    await page.clock.fast_forward(31_000)
    await expect(page.locator(".connection-state")).to_contain_text("Paused")
    await fake.put(document("c", "failed", error="full"))
    await eventually(lambda: page.evaluate("notices.length === 2"))
    await eventually(lambda: fake.connections == 0)


async def test_a_notification_outlasts_a_new_token_and_a_link_to_the_api_carries_a_ticket(page):
    await page.add_init_script(NOTIFICATIONS)
    async with serving(token="first") as fake:
        fake.jobs["a"] = document("a")
        await page.goto(f"{fake.url}/#/jobs/a")
        for token in ("first", "second"):
            await page.get_by_label("Token").fill(token)
            await page.get_by_role("button", name="Connect").click()
            if token == "first":
                await page.get_by_role("button", name="Notify me").click()
                await eventually(lambda: fake.connections == 2)
                fake.token = "second"
                await fake.stop()
                await fake.start()
        await eventually(lambda: fake.connections == 2)
        await fake.put(document("a", "failed"))
        await eventually(lambda: page.evaluate("notices.length === 1"))
        await expect(page.get_by_role("link", name="JSON")).to_be_visible()
        await page.get_by_role("link", name="Download").click()
        await expect(page.get_by_text("the whole log")).to_be_visible()
        assert fake.tickets == ["once"]


async def test_titles_of_the_operation_and_of_steps_are_shown_instead_of_their_names(fake, page):
    steps = [step(1, "final-sync", "running", title="Final synchronisation")]
    fake.jobs["a"] = document(
        "a", steps=steps, title="Live failover", current_step_title="Final synchronisation"
    ) | {"forecast": forecast(ahead=[("boot", 0.9, 30.0)])}  # fmt: skip
    fake.jobs["a"]["forecast"]["steps_ahead"][0]["title"] = "Start of the VM"
    await page.goto(fake.url)
    await expect(rows(page)).to_contain_text("Live failover")
    await expect(rows(page)).to_contain_text("Final synchronisation")
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


async def test_of_thousands_of_steps_a_few_are_drawn_and_all_can_be_reached(fake, page):
    fake.jobs["many"] = of_many_steps(2000)
    await page.goto(f"{fake.url}/#/jobs/many")
    drawn = page.locator(".step-list > .step")
    await expect(drawn.first).to_have_attribute("aria-setsize", "2000")
    assert await drawn.count() < 150
    printed = "dispatchEvent(new Event('beforeprint')); document.querySelectorAll('.step-list > .step').length"
    assert await page.evaluate(printed) == 1000
    await page.evaluate("dispatchEvent(new Event('afterprint'))")
    await expect(drawn).not_to_have_count(1000)
    # A jump far down: all steps above are as high as assumed, until scrolling up draws them. What is in sight stays.
    await page.evaluate("scrollTo(0, 15000)")
    await expect(drawn.first).not_to_have_attribute("aria-posinset", "1")
    for _ in range(5):
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
