"""The demo as a whole, with a stand-in for the daemon."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from correlator.config.schema import Config
from correlator.config.values import SqliteUrl
from correlator.demo import run as demo
from correlator.demo import traffic
from correlator.demo.processes import held_port
from correlator.errors import CorrelatorError


class Daemon:
    """Serves nothing. Reports ready, and keeps its configuration."""

    def __init__(self, *, ends: bool = True, error: Exception | None = None) -> None:
        self.ends, self.error = ends, error
        self.config: Config | None = None
        self.ready = asyncio.Event()

    async def run(self, config: Config, *, on_ready) -> None:
        self.config = config
        if self.error:
            raise self.error
        on_ready(f"http://127.0.0.1:{config.http.listen.port}")
        self.ready.set()
        if not self.ends:
            await asyncio.Event().wait()

    def database(self) -> Path:
        assert self.config
        assert isinstance(self.config.database.url, SqliteUrl)
        return self.config.database.url.path


@pytest.fixture(autouse=True)
def young(monkeypatch):
    """Nothing happened on the appliance before."""

    async def nothing(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(traffic, "write_history", nothing)


async def test_the_pages_url_comes_first_and_a_curl_names_a_job_by_its_guis_id(capsys):
    daemon = Daemon()
    await demo.demo_main(0, 50.0, None, True, ["http://localhost:5173"], seed=1, daemon=daemon.run, broker=lambda: None)
    lines = capsys.readouterr().out.splitlines()
    base = urlsplit(lines[0])
    assert (base.scheme, base.hostname, base.path) == ("http", "127.0.0.1", "")
    text = "\n".join(lines[1:])
    assert f"ws://127.0.0.1:{base.port}/ws" in text
    assert f"{lines[0]}/#/jobs/unified-" in text
    job = text.split(f"curl {lines[0]}/api/v1/jobs/")[1].split("\n")[0]
    assert unquote(job).startswith("unified-")
    assert "Ctrl-C" in lines[-1]
    assert [line.split("MQTT")[1].strip() for line in lines if "MQTT" in line] == [
        "needs a broker: install mosquitto, then start the demo again"
    ]
    assert daemon.config is not None
    assert (daemon.config.http.allowed_origins, daemon.config.mqtt.url) == (("http://localhost:5173",), None)


async def test_a_temporary_folder_is_gone_at_the_end_and_a_given_one_stays(tmp_path):
    daemon = Daemon()
    await demo.demo_main(0, 50.0, None, mqtt=False, daemon=daemon.run)
    assert not daemon.database().parent.exists()
    for _ in range(2):  # the second demo goes on where the first one stopped
        await demo.demo_main(0, 50.0, tmp_path / "a folder?", mqtt=False, daemon=daemon.run)
        assert daemon.database() == tmp_path / "a folder?" / "appliance.db"
        assert daemon.database().exists()


async def test_a_requested_port_in_use_is_an_error_that_names_it(capsys):
    daemon = Daemon()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CorrelatorError, match=rf"cannot listen on port {port}: .*--port 0"):
            await demo.demo_main(port, 50.0, None, mqtt=False, daemon=daemon.run)
    assert daemon.config is None
    assert capsys.readouterr().out == ""


async def test_the_default_port_is_replaced_if_in_use_and_named(capsys):
    daemon = Daemon()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        await demo.demo_main(None, 50.0, None, mqtt=False, daemon=daemon.run, usual_port=port)
    assert daemon.config
    assert daemon.config.http.listen.port != port
    assert f"because {port} is unavailable" in capsys.readouterr().out


async def test_a_held_port_is_kept_for_the_server_also_when_that_starts_again():
    with held_port() as port:
        for _ in range(2):
            with socket.socket() as other, pytest.raises(OSError):
                other.bind(("127.0.0.1", port))
            async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port):
                with pytest.raises(OSError), held_port(port):
                    pass


async def test_ctrl_c_ends_it_cleanly():
    daemon = Daemon(ends=False)
    running = asyncio.create_task(demo.demo_main(0, 50.0, None, mqtt=False, daemon=daemon.run))
    await daemon.ready.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await running
    assert not daemon.database().parent.exists()


async def test_an_error_of_the_daemon_comes_out_as_itself():
    daemon = Daemon(error=LookupError("no such table"))
    with pytest.raises(LookupError, match="no such table"):
        await demo.demo_main(0, 50.0, None, mqtt=False, daemon=daemon.run)
