"""What earlier runs, or instances of another name, left at the broker: retained topics that nobody keeps any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote

import msgspec

from correlator.doctor.check import Check, ok, some, warning
from correlator.settings import Mqtt
from correlator.sinks.topics import Topics

RETAINED = "broker.retained"


def job_ids(settings: Mqtt, retained: Mapping[str, bytes]) -> list[str]:
    """The jobs whose state is retained for our instance."""
    topics = Topics(f"{settings.prefix}/{settings.instance}")
    keys = (topics.key(topic) for topic in retained)
    return [key.name for key in keys if key is not None and key.kind == "state"]


def judge_retained(settings: Mqtt, retained: Mapping[str, bytes], unknown: Sequence[str] | None) -> Check:
    """`unknown`: jobs under our instance that no table knows; None where the tables could not be asked."""
    detail = []
    others = _states(settings, retained)
    gone = sorted(name for name, state in others.items() if state == "offline" and name != settings.instance)
    mend = [clearing(settings, f"{settings.prefix}/{name}/#") for name in gone]
    if gone:
        detail.append(f"offline, and not ours: {some(gone)}; an instance that was renamed leaves all of its jobs")
    if unknown:
        detail.append(f"{len(unknown)} jobs under our instance that no table has: {some(unknown)}")
        detail.append("the daemon removes them when it connects to the broker next")
        topics = Topics(f"{settings.prefix}/{settings.instance}")
        mend += [clearing(settings, f"{topics.root}/job/+/state")] if len(unknown) > 1 else []
        mend += [clearing(settings, f"{topics.root}/job/{unknown[0]}/state")] if len(unknown) == 1 else []
    if detail:
        return warning(RETAINED, "the broker holds topics that nobody keeps any more", detail, mend)
    online = sorted(name for name, state in others.items() if state != "offline" and name != settings.instance)
    notes = [f"other instances: {some(online)}"] if online else []
    if unknown is None:
        notes.append("whether the tables have all of its jobs could not be asked")
    return ok(RETAINED, f"{len(job_ids(settings, retained))} jobs of ours, and no topic that nobody keeps", notes)


def clearing(settings: Mqtt, topic: str) -> str:
    """The command that empties what is retained under `topic`."""
    assert settings.url is not None
    words = ["mosquitto_sub", "-h", quote(settings.url.host), "-p", str(settings.url.port)]
    if settings.url.tls:
        ca = settings.tls.ca if settings.tls is not None else None
        words += ["--cafile", quote(str(ca))] if ca else ["--tls-use-os-certs"]
    if settings.username:
        file = settings.password_file
        words += ["-u", quote(settings.username), "-P", f'"$(cat {quote(str(file))})"' if file else '"$PASSWORD"']
    # Whoever may publish has chosen the name of an instance: it is to be a word, whatever it holds.
    return " ".join([*words, "-t", quote(topic), "--remove-retained", "--retained-only", "-W", "5"])


def _states(settings: Mqtt, retained: Mapping[str, bytes]) -> dict[str, str]:
    """Instance → its own word."""
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
