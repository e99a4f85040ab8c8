"""A new configuration is taken over whole, or not at all."""

import pytest

from correlator.config.loading import load
from correlator.config.schema import leaves, repeated_tables
from correlator.daemon import LIVE, needs_restart, reload, reloaded
from correlator.errors import CorrelatorError
from correlator.ops import metrics
from tests.support.metric_values import value


@pytest.fixture
def configured(tmp_path):
    def configured(text: str):
        file = tmp_path / "correlator.toml"
        file.write_text(text)
        return load(file, {"HOME": str(tmp_path)})

    return configured


async def test_every_part_applies_the_new_settings(configured):
    taken = []
    new = configured("[log]\nlevel = 'debug'")
    parts = [lambda c: lambda: taken.append((1, c)), lambda c: lambda: taken.append((2, c))]
    metrics.RELOADED.set(0)
    await reload(configured(""), lambda: new, parts)
    assert taken == [(1, new), (2, new)]
    assert value(metrics.RELOADED) == 1


def refuse(config):
    raise CorrelatorError("http.tls_cert: no certificate")


def fail(config):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("text", "part", "said"),
    [
        ("", refuse, ["http.tls_cert: no certificate"]),
        ("", fail, []),
        (
            "[jbos]\n[http]\nlistne = 1",
            None,
            ["FILE:1: jbos: unknown section; did you mean jobs?",
             "FILE:3: http.listne: unknown key; did you mean http.listen?"],
        ),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_logged_and_nothing_is_applied(configured, caplog, tmp_path, text, part, said):
    taken = []
    parts = [lambda _: lambda: taken.append(1), *([part] if part is not None else [])]
    metrics.RELOADED.set(1)
    before = value(metrics.RELOADED_AT)
    await reload(configured(""), lambda: configured(text), parts)
    assert (taken, value(metrics.RELOADED), value(metrics.RELOADED_AT)) == ([], 0, before)
    file = str(tmp_path / "correlator.toml")
    assert [r.message.replace(file, "FILE") for r in caplog.records] == [*said, "the configuration was not changed"]
    assert (caplog.records[-1].exc_info is not None) is (part is fail), "an unexpected error has its traceback"


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
async def test_switching_https_needs_a_restart_and_a_renewed_certificate_does_not(
    configured, caplog, tmp_path, before, after
):
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    texts = [
        f"[http]\ntls_cert = '{tmp_path / name}'\ntls_key = '{tmp_path / 'c'}'" if on else ""
        for on, name in ((before, "a"), (after, "b"))
    ]
    started = configured(texts[0])
    new = configured(texts[1])
    assert needs_restart(started, new) == ([] if before and after else ["http.tls_cert", "http.tls_key"])


async def test_keys_that_need_a_restart_are_named_by_what_the_daemon_was_started_with(configured, caplog):
    started = configured("[jobs]\nretention = '1h'\n[log]\nlevel = 'info'\n")
    new = configured(
        "[jobs]\nretention = '2h'\n[mqtt]\nurl = 'mqtt://b'\n[log]\nlevel = 'error'\n"
        "[[failures.same]]\npattern = 'bay *'\nname = 'bay'\n[[failures.known]]\npattern = 'tools'\ntext = 'see'\n"
    )
    await reload(started, lambda: new, [])
    warning = "changed, but applied only by a restart: failures.same, jobs.retention, mqtt.url"
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [warning]
    caplog.clear()
    await reload(started, lambda: started, [])
    assert [r.levelname for r in caplog.records if r.levelname == "WARNING"] == []


def test_every_reloadable_key_exists():
    assert {dotted for dotted, _ in (*leaves(), *repeated_tables())} >= LIVE


def test_what_is_built_after_a_reload_has_its_values_and_keeps_those_that_need_a_restart(configured, tmp_path):
    for name in ("cert", "key", "ca"):
        (tmp_path / name).write_text("")
    started = configured("[http]\nlisten = '127.0.0.1:1'\nmax_readers = 5\n[log]\nlevel = 'info'")
    new = configured(
        f"[http]\nlisten = '127.0.0.1:2'\nmax_readers = 7\ntls_cert = '{tmp_path}/cert'\ntls_key = '{tmp_path}/key'\n"
        f"[log]\nlevel = 'debug'\n[mqtt]\nurl = 'mqtt://other'\nusername = 'new'\n[otlp.tls]\nca = '{tmp_path}/ca'\n"
        "[[webhooks]]\nname = 'tickets'\nurl = 'https://tickets.example/'"
    )
    effective = reloaded(started, new)
    assert (effective.log.level, effective.http.max_readers, effective.mqtt.username) == ("debug", 7, "new")
    assert (effective.webhooks, effective.otlp.tls) == (new.webhooks, new.otlp.tls)
    assert (effective.http.listen, effective.http.tls_cert, effective.mqtt.url) == (started.http.listen, None, None)
    assert reloaded(started, started) == started
