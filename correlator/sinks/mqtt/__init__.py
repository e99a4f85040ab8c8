"""The MQTT sink: retained state and events, with the limits that a broker announces."""
