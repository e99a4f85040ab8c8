"""A private MQTT broker."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from tests.support.servers import Server, program, run_program


class Mosquitto(Server):
    """An MQTT broker: anonymous, or with `users` (name → password).

    `settings` are further lines of its configuration:
    `Mosquitto("max_packet_size 100000")`.
    """

    def __init__(self, *settings: str, users: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.users = dict(users or {})

    @property
    def url(self) -> str:
        """As `mqtt.url` in the configuration."""
        return f"mqtt://127.0.0.1:{self.port}"

    def _prepare(self) -> Sequence[str]:
        lines = [
            f"listener {self.port} 127.0.0.1",
            "max_queued_messages 0",
            "log_dest stdout",
            "set_tcp_nodelay true",
            *self.settings,
        ]
        if os.getuid() == 0:
            lines.append("user root")
        if self.users:
            passwords = self.folder / "passwords"
            passwords.unlink(missing_ok=True)
            passwords.touch(mode=0o600)
            for name, password in self.users.items():
                run_program(program("mosquitto_passwd"), "-b", str(passwords), name, password)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines.append("allow_anonymous true")
        configuration = self.folder / "mosquitto.conf"
        configuration.write_text("\n".join(lines) + "\n")
        return [program("mosquitto"), "-c", str(configuration)]

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
