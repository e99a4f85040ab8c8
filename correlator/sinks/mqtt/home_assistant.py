"""A VM as a device in Home Assistant, by MQTT discovery: its entities read the retained topic of the VM.

One message describes the device with all its entities; an empty one removes it. Home Assistant keys devices and
entities by their unique IDs, which follow from root and name alone: a restart keeps them, and two daemons at one broker
have different ones. See https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery.
"""

from __future__ import annotations

from typing import Any, Final

from correlator import __version__
from correlator.model.document import JOB_STATUSES
from correlator.model.messages import HomeAssistantDevice
from correlator.sinks.mqtt.topics import TopicKey, Topics, identifier

STATUS: Final = "homeassistant/status"
"""The topic in which Home Assistant reports its own state, by default."""

BEGAN: Final = b"online"

MAX_NAME: Final = 100
"""Characters of a device's name. Home Assistant makes the IDs of entities of it, which have at most 255."""

_AVAILABLE = "{{ 'online' if value_json.state == 'online' else 'offline' }}"
_ATTRIBUTES = (
    "{{ {'job_id': value_json.job_id, 'operation': value_json.operation, 'step': value_json.current_step,"
    " 'started_at': value_json.started_at, 'error': (value_json.error or '')[:1000]} | tojson }}"
)
_END = "{{ value_json.ended_at or (value_json.forecast.ends_at.p50 if value_json.forecast else None) }}"
_PROBLEM = (
    "{{ 'ON' if value_json.status == 'failed' or value_json.stalled"
    " or (value_json.forecast and value_json.forecast.state == 'overdue') else 'OFF' }}"
)


def device(topics: Topics, name: str) -> HomeAssistantDevice:
    """Return the device of the VM with this name."""
    own = f"{identifier(topics.root)}_{identifier(name)}"
    topic = topics.of(TopicKey("vm", name))
    entities: dict[str, dict[str, Any]] = {
        "status": {
            "platform": "sensor",
            "name": "Status",
            "device_class": "enum",
            "options": [*JOB_STATUSES],
            "value_template": "{{ value_json.status }}",
            "json_attributes_topic": topic,
            "json_attributes_template": _ATTRIBUTES,
        },
        "progress": {
            "platform": "sensor",
            "name": "Progress",
            "unit_of_measurement": "%",
            "suggested_display_precision": 0,
            "value_template": "{{ value_json.progress.percent }}",
        },
        "end": {"platform": "sensor", "name": "End", "device_class": "timestamp", "value_template": _END},
        "problem": {
            "platform": "binary_sensor",
            "name": "Problem",
            "device_class": "problem",
            "value_template": _PROBLEM,
        },
    }
    return {
        "device": {
            "identifiers": [own],
            "name": name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…",
            "model": "VM",
        },
        "origin": {"name": "correlator", "sw_version": __version__},
        "availability": [{"topic": topics.status, "value_template": _AVAILABLE}],
        "state_topic": topic,
        "components": {key: {**entity, "unique_id": f"{own}_{key}"} for key, entity in entities.items()},
    }
