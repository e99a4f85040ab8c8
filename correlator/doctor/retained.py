"""Check of retained messages that earlier runs or renamed instances left at the broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote

import msgspec

from correlator.config.schema import Mqtt
from correlator.doctor.check import Check, ok, some, warning
from correlator.sinks.mqtt.topics import Topics

RETAINED = "broker.retained"


def job_ids(settings: Mqtt, retained: Mapping[str, bytes]) -> list[str]:
    """Return the jobs whose state is retained for this instance."""
    topics = Topics(f"{settings.prefix}/{settings.instance}")
    keys = (topics.key(topic) for topic in retained)
    return [key.name for key in keys if key is not None and key.kind == "state"]


def judge_retained(settings: Mqtt, retained: Mapping[str, bytes], unknown: Sequence[str] | None) -> Check:
    """Judge retained topics. `unknown`: jobs of ours that no table has; None if the tables were not queried."""
    detail = []
    others = _states(settings, retained)
    gone = sorted(name for name, state in others.items() if state == "offline" and name != settings.instance)
    fix = [clearing(settings, f"{settings.prefix}/{name}/#") for name in gone]
    if gone:
        detail.append(f"offline, and not ours: {some(gone)}; a renamed instance leaves all its jobs")
    if unknown:
        detail.append(f"{len(unknown)} jobs of our instance that no table has: {some(unknown)}")
        detail.append("The daemon removes them when it next connects to the broker.")
        topics = Topics(f"{settings.prefix}/{settings.instance}")
        fix += [clearing(settings, f"{topics.root}/job/+/state")] if len(unknown) > 1 else []
        fix += [clearing(settings, f"{topics.root}/job/{unknown[0]}/state")] if len(unknown) == 1 else []
    if detail:
        return warning(RETAINED, "the broker holds obsolete retained topics", detail, fix)
    online = sorted(name for name, state in others.items() if state != "offline" and name != settings.instance)
    notes = [f"other instances: {some(online)}"] if online else []
    if unknown is None:
        notes.append("The tables could not be queried for its jobs.")
    return ok(RETAINED, f"{len(job_ids(settings, retained))} jobs of ours, and no obsolete topic", notes)


def clearing(settings: Mqtt, topic: str) -> str:
    """Return the command that removes the retained messages under `topic`."""
    assert settings.url is not None
    words = ["mosquitto_sub", "-h", quote(settings.url.host), "-p", str(settings.url.port)]
    if settings.url.tls:
        ca = settings.tls.ca if settings.tls is not None else None
        words += ["--cafile", quote(str(ca))] if ca else ["--tls-use-os-certs"]
    if settings.username:
        file = settings.password_file
        words += ["-u", quote(settings.username), "-P", f'"$(cat {quote(str(file))})"' if file else '"$PASSWORD"']
    # Any client that may publish can choose the name of an instance, so it must be quoted.
    return " ".join([*words, "-t", quote(topic), "--remove-retained", "--retained-only", "-W", "5"])


def _states(settings: Mqtt, retained: Mapping[str, bytes]) -> dict[str, str]:
    """Return instance → the state that it published."""
    found = {}
    for topic, payload in retained.items():
        match topic.removeprefix(f"{settings.prefix}/").split("/"):
            case [instance, "status"] if payload:
                try:
                    state = msgspec.json.decode(payload)
                except msgspec.DecodeError:
                    continue
                if isinstance(state, dict):
                    found[instance] = str(state.get("state"))
    return found
