"""The command line: what each command calls, prints and ends with."""

import asyncio
import http.server
import json
import logging
import subprocess
import sys
import threading
import tomllib
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from click.testing import CliRunner

from correlator.cli import main
from correlator.config.schema import Config
from correlator.errors import ConfigError, SchemaError, SourceUnavailable
from correlator.terminal.watch import WatchOrder
from tests.support.certificates import Certificates
from tests.support.eventually import PATIENCE
from tests.support.package_files import place


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path, log_as_before):
    """No settings of this machine, and no watchdog, which would end the process of the tests."""
    monkeypatch.setenv("WATCHDOG_USEC", "0")
    (tmp_path / "etc").mkdir()
    place(monkeypatch, tmp_path / "etc")


@pytest.fixture
def invoke():
    def invoke(*arguments, env=None):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="correlator", env=env)

    return invoke


@pytest.fixture
def daemon(monkeypatch):
    """Put `work(config)` in the place of the daemon."""

    def daemon(work):
        module = ModuleType("correlator.app")

        async def run(config, *, load, beat):
            await asyncio.sleep(0)
            work(config)

        monkeypatch.setattr(module, "run", run, raising=False)
        monkeypatch.setitem(sys.modules, "correlator.app", module)

    return daemon


def failing(error):
    def work(config):
        raise error

    return work


def test_a_mistyped_command_is_a_usage_error_that_names_the_nearest(invoke):
    result = invoke("check-confg")
    assert result.exit_code == 2
    assert "'check-config'" in result.stderr


def test_check_config_prints_what_holds_as_toml_or_json(invoke, tmp_path):
    text = "[database]\nurl = 'mysql://u:hunter2@h/d'\ntls = {}\n[jobs]\nhistory = '7d'"
    (tmp_path / "etc/correlator.toml").write_text(text)
    result = invoke("check-config", env={"CORRELATOR_HTTP__LISTEN": "[::1]:0"})
    assert (result.exit_code, result.stderr) == (0, "")
    shown = tomllib.loads(result.stdout)
    assert (shown["database"]["url"], shown["database"]["password"]) == ("mysql://u@h:3306/d", "***")
    assert (shown["database"]["tls"]["verify"], shown["http"]["listen"], shown["jobs"]["history"]) == (
        True, "[::1]:0", "168h",
    )  # fmt: skip
    shown = json.loads(invoke("check-config", "-o", "json").stdout)
    assert (shown["database"]["password"], shown["jobs"]["history"]) == ("***", 604800.0)


@pytest.mark.parametrize("command", ["check-config", "run"])
def test_a_wrong_configuration_is_listed_on_stderr_and_ends_with_78(invoke, daemon, tmp_path, command):
    daemon(failing(AssertionError("started all the same")))
    file = tmp_path / "wrong.toml"
    file.write_text('[jobs]\nmax_jobs = 0\nretention = "a\\u009b\\nb"')
    result = invoke(command, "--config", file)
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines() == [
        f"correlator: {file}:2: jobs.max_jobs = 0: expected a whole number, at least 1, e.g. 20000",
        rf'correlator: {file}:3: jobs.retention = "a\u009b\nb": expected a duration with its unit, e.g. "24h"',
    ]


def test_run_gives_the_daemon_its_configuration_and_ends_with_0(invoke, daemon):
    seen: list[Config] = []
    daemon(seen.append)
    result = invoke("run", env={"CORRELATOR_LOG__LEVEL": "warning"})
    assert (result.exit_code, result.output) == (0, "")
    assert (seen[0].log.level, logging.getLogger().level) == ("warning", logging.WARNING)


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (SchemaError("log_events has no id"), 1, ["correlator: log_events has no id"]),
        (ConfigError(["a", "b"]), 78, ["correlator: a", "correlator: b"]),
        (ExceptionGroup("", [ExceptionGroup("", [SourceUnavailable("away")]), SchemaError("odd")]), 1,
         ["correlator: away", "correlator: odd"]),
        (ExceptionGroup("", [SourceUnavailable("a"), ConfigError(["b"])]), 78, ["correlator: a", "correlator: b"]),
        (KeyboardInterrupt(), 130, []),
        (BrokenPipeError(), 1, []),
        (ExceptionGroup("", [BrokenPipeError()]), 1, []),
    ],
)  # fmt: skip
def test_an_expected_failure_is_a_line_and_has_a_traceback_at_level_debug_alone(invoke, daemon, error, code, lines):
    daemon(failing(error))
    result = invoke("run")
    assert (result.exit_code, result.output.splitlines()) == (code, lines)
    debug = invoke("run", env={"CORRELATOR_LOG__LEVEL": "debug"})
    assert ("Traceback" in debug.stderr) is bool(lines)
    assert debug.stderr.splitlines()[-len(lines) or None :] == lines


def test_a_mistake_in_the_program_is_logged_with_its_traceback_in_the_logs_format(invoke, daemon):
    daemon(failing(ExceptionGroup("", [SourceUnavailable("away"), ZeroDivisionError("oops")])))
    result = invoke("run", env={"CORRELATOR_LOG__FORMAT": "json"})
    assert result.exit_code == 1
    assert "ZeroDivisionError: oops" in json.loads(result.stderr)["exception"]


def test_demo_hands_its_options_on(invoke, monkeypatch, tmp_path):
    seen: list[tuple[object, ...]] = []

    async def demo_main(*arguments):
        await asyncio.sleep(0)
        seen.append(arguments)

    module = ModuleType("correlator.demo.run")
    monkeypatch.setattr(module, "demo_main", demo_main, raising=False)
    monkeypatch.setitem(sys.modules, "correlator.demo.run", module)
    options = ("--port", 0, "--rate", 2.5, "--directory", tmp_path, "--no-mqtt", "--allow-origin", "http://a:1")
    assert (invoke("demo", *options).exit_code, invoke("demo", "--rate", 0).exit_code) == (0, 2)
    assert seen == [(0, 2.5, tmp_path, False, ("http://a:1",))]


# -- the commands that ask a daemon


@pytest.fixture
def asked(monkeypatch):
    """What the bodies of jobs, show and watch were called with; each ends at once, watch with `asked.code`."""
    from correlator.terminal import listing, show, watch

    class Asked(list[tuple[object, ...]]):
        code = 0

    seen = Asked()

    async def note(client, *arguments):
        seen.append((client, *arguments))
        return seen.code

    for module, name in ((listing, "jobs"), (listing, "follow_jobs"), (show, "show"), (watch, "watch")):
        monkeypatch.setattr(module, name, note)
    for variable in ("CORRELATOR_URL", "CORRELATOR_TOKEN", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    return seen


def test_watch_hands_its_options_on_and_ends_with_its_code(invoke, asked):
    asked.code = 11
    assert invoke("watch", "a").exit_code == 11
    options = ("--logs", "debug", "--timeout", "2.5", "--forever", "--exit-status", "--progress", "jsonl")
    assert invoke("watch", "a", "b/c", *options).exit_code == 11
    assert [(order, progress) for _, order, progress, *_ in asked] == [
        (WatchOrder(("a",)), "plain"),
        (WatchOrder(("a", "b/c"), "DEBUG", timeout=2.5, forever=True, by_status=True), "jsonl"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch",),
        ("watch", ""),
        ("watch", "x" * 256),
        ("watch", "a", "--timeout", "0"),
        ("watch", "a", "--progress", "tty"),
        ("watch", "a", "--url", "ftp://h"),
        ("watch", "a", "--url", "http://" + "a" * 70),
        ("watch", "a", "--url", "http://a..b"),
        ("show", "a", "--token-file", "/nope"),
        ("show", "a", "--ca", "/nope"),
        ("jobs", "--since", "yesterday"),
        ("jobs", "--limit", "0"),
        ("jobs", "--logs"),
        ("jobs", "--logs", "--text", "x", "-w"),
        ("jobs", "--logs", "--text", "x", "--status", "failed"),
    ],
)
def test_contradictory_options_are_a_usage_error_before_any_request(invoke, asked, arguments):
    result = invoke(*arguments)
    assert (result.exit_code, asked) == (2, [])
    assert "Error: " in result.stderr
    assert ("--logs goes with --text" in result.stderr) is ("--logs" in arguments)


def test_the_daemon_and_the_token_come_from_options_or_the_environment(invoke, asked, tmp_path):
    file = tmp_path / "token"
    file.write_text("secret\n# a comment\n")
    env = {"CORRELATOR_URL": "https://appliance:1", "CORRELATOR_TOKEN": "other"}
    assert invoke("show", "a", env=env).exit_code == 0
    assert invoke("show", "a", "--url", "appliance", "--token-file", file, env=env).exit_code == 0
    assert [(call[0].url, call[0]._token) for call in asked] == [
        ("https://appliance:1", "other"), ("http://appliance", "secret"),
    ]  # fmt: skip
    for wrong in ({"CORRELATOR_TOKEN": "hunter2\nx"}, {"CORRELATOR_URL": "http://\udcff"}):
        refused = invoke("show", "a", env=wrong)
        assert (refused.exit_code, len(asked), "hunter2" in refused.output) == (2, 2, False)


def test_without_a_url_whoever_may_read_it_uses_the_token_of_the_service(invoke, asked, tmp_path, monkeypatch):
    assert invoke("show", "a").exit_code == 0
    (tmp_path / "etc/api-token").write_text("# of the GUI\nsecret-of-the-service\n")
    assert invoke("show", "a").exit_code == 0
    assert invoke("show", "a", "--url", "http://127.0.0.1:8687").exit_code == 0
    assert invoke("show", "a", env={"CORRELATOR_TOKEN": "other"}).exit_code == 0
    assert [call[0]._token for call in asked] == ["", "secret-of-the-service", "", "other"]


def test_without_a_url_the_address_is_that_of_the_configuration(invoke, asked, tmp_path, monkeypatch):
    file = tmp_path / "etc/correlator.toml"
    for written in (
        '[http]\nlisten = "0.0.0.0:9000"\ninsecure = true',
        '[http]\nlisten = "[::1]:9001"\n[oops]',
        "[http",
    ):
        file.write_text(written)
        assert invoke("jobs").exit_code == 0
    assert invoke("jobs", "--url", "http://h:1").exit_code == 0
    urls = ["http://127.0.0.1:9000", "http://[::1]:9001", "http://127.0.0.1:8686", "http://h:1"]
    assert [call[0].url for call in asked] == urls


def test_jobs_makes_a_query_of_its_options(invoke, asked):
    result = invoke(
        "jobs", "--status", "failed", "--status", "running", "--type", "failover", "--operation", "o", "--context", "c",
        "-q", "text", "--since", "2025-09-22T12:00:00+02:00", "--limit", "7", "-o", "json", "--text", "no space",
        "--until", "2025-09-22T12:00:00+01:00", "--instance", "dc1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    _, query, form, *_ = asked[0]
    assert form.output == "json"
    assert query.limit == 7
    assert query.parameters() == {
        "status": ("failed", "running"), "job_type": ("failover",), "operation": ("o",), "context_id": ("c",),
        "q": "text", "since": "2025-09-22T10:00:00Z", "text": "no space", "until": "2025-09-22T11:00:00Z",
        "instance": ("dc1",),
    }  # fmt: skip
    assert query.wanted().instance == ("dc1",)
    assert invoke("jobs", "-w", "-o", "table", "--since", "2h").exit_code == 0
    _, query, form, *_ = asked[1]
    ago = datetime.now(UTC) - datetime.fromisoformat(query.parameters()["since"])
    assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=1)
    assert form.output == "plain", "there is no terminal"


def run(*arguments, to="", env=None):
    """Run the program in a shell that redirects its output by `to`."""
    command = ["sh", "-c", f'exec "$@" {to}', "sh", sys.executable, "-m", "correlator", *arguments]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False, env=env)


def test_a_full_disk_and_a_closed_output_end_a_command_without_a_traceback():
    full, closed = run("check-config", to=">/dev/full"), run("--help", to=">&-")
    assert full.stderr == b"correlator: the output cannot be written: No space left on device\n"
    assert (full.returncode, closed.returncode, closed.stderr) == (1, 0, b"")
    unreachable = run("watch", "x", "--url", "http://127.0.0.1:1", to=">&-")
    assert (unreachable.returncode, b"Traceback" in unreachable.stderr) == (1, False)
    assert b"cannot be reached" in unreachable.stderr


@pytest.mark.parametrize(("arguments", "locale"), [(("show", b"\xe4\xff"), "C"), (("jobs", "-q", b"\xff"), "C.UTF-8")])
def test_an_argument_that_is_no_text_is_a_usage_error(arguments, locale):
    done = run(*arguments, env={"LC_ALL": locale})
    assert done.returncode == 2
    assert b"is no text in UTF-8" in done.stderr


def test_a_command_ends_when_nobody_reads_its_output_any_more():
    code = (
        "import asyncio; from correlator.terminal.commands import while_output_is_read as run\n"
        "print('begun', flush=True); asyncio.run(run(asyncio.sleep(1000)))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: PT018
        assert process.stdout.readline() == b"begun\n"
        assert process.poll() is None
        process.stdout.close()
        try:
            process.wait(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.stderr.read().endswith(b"BrokenPipeError: [Errno 32] Broken pipe\n")


FLEET = "https://correlator.example/i/dc1"


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (("show", "a/b", "--url", "h:1/x"), "http://h:1/x/#/jobs/a%2Fb"),
        (("show", "a/b"), f"{FLEET}/#/jobs/a%2Fb"),
        (("history", "büro 1"), f"{FLEET}/#/entities/b%C3%BCro%201"),
        (("jobs",), f"{FLEET}/#/"),
        (
            ("jobs", "-q", "a b", "--text", "c", "--status", "failed", "--status", "running", "--type", "failover",
             "--instance", "dc1", "--since", "2026-10-01T10:00:00Z", "--until", "2026-10-31T10:00:00Z"),
            f"{FLEET}/#/?q=a+b+c&status=failed%2Crunning&type=failover&instance=dc1&from=2026-10-01&to=2026-10-31",
        ),
        (("jobs", "--state", "stalled", "--state", "late"), f"{FLEET}/#/?status=running&forecast=late&stalled=1"),
    ],
)  # fmt: skip
def test_web_prints_the_address_of_the_page_and_opens_it_on_a_desktop(
    invoke, asked, tmp_path, monkeypatch, arguments, address
):
    (tmp_path / "etc/correlator.toml").write_text(f"[http]\npublic_url = '{FLEET}/'")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    for desktop in (False, True):
        env = {"DISPLAY": ":0" if desktop else "", "WAYLAND_DISPLAY": "", "BROWSER": ""}
        result = invoke(*arguments, "--web", env=env)
        assert (result.exit_code, result.stdout, asked) == (0, f"{address}\n", []), result.output
        assert opened == ([address] if desktop else [])
    result = invoke("jobs", "--web", "--operation", "o", "--type", "a", "--type", "b")
    assert result.exit_code == 1
    assert "the page has no filter for --operation and a second --type" in result.stderr


def test_a_local_command_and_a_completion_import_neither_rich_nor_a_client():
    modules = "correlator.cli, correlator.doctor.service, correlator.terminal.completion"
    code = f"import sys, {modules}; print([m for m in ('rich', 'aiohttp', 'aiomysql') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("width", ["60", "80", "200"])
@pytest.mark.parametrize("group", [(), ("config",)])
def test_no_description_of_a_command_is_cut_off(invoke, width, group):
    found = invoke(*group, "--help", env={"COLUMNS": width, "TERMINAL_WIDTH": width})
    assert found.exit_code == 0
    listed = found.stdout.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_a_gateway_reads_its_own_file_which_its_help_names(invoke, tmp_path, monkeypatch):
    etc = tmp_path / "etc"
    (etc / "correlator.toml").write_text("[wrong]\n")
    (etc / "gateway.toml").write_text("[strange]\n")
    found = invoke("gateway")
    assert (found.exit_code, "strange: unknown section" in found.stderr) == (78, True), found.stderr
    (etc / "gateway.toml").unlink()
    assert "wrong: unknown section" in invoke("gateway").stderr, "as before, where there is none of its own"
    assert "/etc/correlator/gateway.toml" in " ".join(invoke("gateway", "--help").stdout.split())


def test_health_waits_until_the_daemon_is_ready_and_gives_up_after_the_time(invoke, tmp_path):
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if len(asked) > 2 else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    file = tmp_path / "elsewhere.toml"
    file.write_text(f'[http]\nlisten = "127.0.0.1:{server.server_port}"')
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given_up = invoke("health", "--config", str(file), "--wait", "0")
    assert (given_up.exit_code, "is not ready" in given_up.stderr) == (1, True), given_up.output
    ready = invoke("health", "--config", str(file), "--wait", "60")
    server.shutdown()
    server.server_close()
    assert (ready.exit_code, ready.output) == (0, "")
    assert asked == ["/health/ready"] * 3


@pytest.mark.parametrize(
    ("status", "tls", "says"), [(200, False, ""), (200, True, ""), (503, False, "makes no progress")]
)
def test_health_asks_the_daemon_of_this_host_whether_it_lives(invoke, tmp_path, status, tls, says):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health/live" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    # Neither a proxy of the environment is asked, nor does the rest of the configuration have to be right.
    env, file = {"http_proxy": "http://127.0.0.1:1"}, tmp_path / "elsewhere.toml"
    file.write_text(f'[http]\nlisten = "0.0.0.0:{server.server_port}"')
    asked = ("health", "--config", str(file))
    if tls:
        made = Certificates.create(tmp_path / "tls")
        made.make("server", "DNS:elsewhere")
        server.socket = made.server("server").wrap_socket(server.socket, server_side=True)
        env |= {
            "CORRELATOR_HTTP__TLS_CERT": str(made.cert("server")),
            "CORRELATOR_HTTP__TLS_KEY": str(made.key("server")),
        }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    result = invoke(*asked, env=env)
    server.shutdown()
    server.server_close()
    assert (result.exit_code, says in result.stderr) == (1 if says else 0, True), result.output
    assert invoke(*asked, env=env).exit_code == 1
    assert "no daemon answers at http" in invoke(*asked, env=env).stderr
