"""A failure is announced with its reason: by MQTT each one, by a webhook only what is new, with an operator's note."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.webhook_receiver import Receiver

CONFIG = """
[[webhooks]]
name = "new"
url = "{url}"
events = ["job.failed"]
failures = ["new"]
allow_private = true

[[failures.known]]
pattern = "no space left"
text = "{note}"

[[failures.same]]
pattern = "bay *"
name = "bay"
"""


async def fail(appliance: Appliance, error: str) -> str:
    """A job that fails as JobLog lets one fail: its log row comes before its row in the table."""
    job_id = await appliance.job()
    step = await appliance.step(job_id, 1, "copy")
    await appliance.log("Job failed", "ERROR", attrs={"job_id": job_id, "error": error})
    await appliance.run("UPDATE job_steps SET status = 'failed', error_message = %s WHERE id = %s", error, step)
    await appliance.end(job_id, "failed", error)
    return job_id


async def test_what_failed_and_whether_it_is_new_is_in_the_event(
    tmp_path: Path, database: Database, appliance: Appliance, mosquitto: Mosquitto
):
    old = await fail(appliance, "bay south has no disk")
    async with Receiver() as receiver, Listener().listening(mosquitto, "new-failures") as listener:
        file = tmp_path / "correlator.toml"
        file.write_text(CONFIG.format(url=receiver.url, note="Empty the volume."))
        daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=mosquitto.url, mqtt__instance="new-failures")
        daemon.arguments = ("--config", str(file))
        async with daemon:

            async def complete() -> bool:
                return bool((await daemon.get("/api/v1/failures"))[1]["complete"])

            await eventually(complete)
            failed = [
                await fail(appliance, "no space left on device"),
                await fail(appliance, "bay north has no disk"),
            ]

            def announced() -> dict[str, tuple[str, str]]:
                events = [one for one in listener.events if one["kind"] == "job.failed"]
                return {one["job_id"]: (one["failure"]["text"], one["failure"]["state"]) for one in events}

            await eventually(lambda: len(announced()) == 2)
            assert announced() == {
                failed[0]: ("no space left on device", "new"),
                failed[1]: ("bay north has no disk", "known"),
            }
            await eventually(lambda: receiver.accepted)
            again = await fail(appliance, "out of memory")
            await eventually(lambda: len(receiver.accepted) == 2)
            events = [json.loads(one.body) for one in receiver.accepted]
            assert [event["data"]["job_id"] for event in events] == [failed[0], again]
            assert [event.get("note") for event in events] == ["Empty the volume.", None]
            assert await daemon.metric('correlator_failures_total{state="new"}') == 2
            assert await daemon.metric('correlator_failures_total{state="known"}') == 1

            file.write_text(CONFIG.format(url=receiver.url, note="Call somebody."))
            daemon.hang_up()

            async def noted() -> bool:
                groups = (await daemon.get("/api/v1/failures"))[1]["failures"]
                return [one["note"] and one["note"]["text"] for one in groups] == [None, None, "Call somebody."]

            await eventually(noted)
            group = (await daemon.get(f"/api/v1/jobs/{old}/why"))[1]["group"]
            assert (group["count"], group["jobs"][1]["job_id"]) == (2, old)
