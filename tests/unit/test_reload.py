"""A new configuration is taken over whole, or not at all."""

import pytest

from correlator import metrics
from correlator.config import load
from correlator.errors import ConfigError, CorrelatorError
from correlator.reload import LIVE, Reload
from correlator.settings import leaves


@pytest.fixture
def configured(tmp_path):
    def configured(text: str):
        file = tmp_path / "correlator.toml"
        file.write_text(text)
        return load(file, {"HOME": str(tmp_path)})

    return configured


def value(metric):
    return metric._value.get()


async def test_every_part_takes_it_over(configured):
    taken = []
    new = configured("[log]\nlevel = 'debug'")
    parts = [lambda c: lambda: taken.append((1, c)), lambda c: lambda: taken.append((2, c))]
    reload = Reload(configured(""), lambda: new, parts)
    metrics.RELOADED.set(0)
    await reload.run()
    assert taken == [(1, new), (2, new)]
    assert value(metrics.RELOADED) == 1


async def test_what_one_part_cannot_take_no_part_takes(configured, caplog):
    def refuse(_):
        raise CorrelatorError("http.tls_cert: no certificate")

    taken = []
    reload = Reload(configured(""), lambda: configured(""), [lambda _: lambda: taken.append(1), refuse])
    await reload.run()
    assert taken == []
    assert value(metrics.RELOADED) == 0
    assert [r.message for r in caplog.records] == ["http.tls_cert: no certificate", "the configuration stays as it was"]


async def test_a_file_that_is_wrong_is_told_line_by_line_and_changes_nothing(configured, caplog):
    taken = []
    reload = Reload(
        configured(""), lambda: configured("[jbos]\n[http]\nlistne = 1"), [lambda _: lambda: taken.append(1)]
    )
    before = value(metrics.RELOADED_AT)
    await reload.run()
    assert taken == []
    assert (value(metrics.RELOADED), value(metrics.RELOADED_AT)) == (0, before)
    assert [r.message for r in caplog.records] == [
        "jbos: unknown section; did you mean jobs?",
        "http.listne: unknown key; did you mean http.listen?",
        "the configuration stays as it was",
    ]


async def test_a_mistake_of_the_program_is_told_with_its_traceback_and_changes_nothing(configured, caplog):
    def broken():
        raise ZeroDivisionError

    taken = []
    metrics.RELOADED.set(1)
    await Reload(configured(""), broken, [lambda _: lambda: taken.append(1)]).run()
    assert taken == []
    assert value(metrics.RELOADED) == 0
    (told,) = caplog.records
    assert told.message == "the configuration stays as it was"
    assert told.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
async def test_from_http_to_https_or_back_takes_a_restart_and_a_renewed_certificate_none(
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
    waiting = Reload(started, lambda: new, []).needs_restart(new)
    assert waiting == ([] if before and after else ["http.tls_cert", "http.tls_key"])


async def test_keys_that_need_a_restart_are_named_by_what_the_daemon_was_started_with(configured, caplog):
    started = configured("[jobs]\nretention = '1h'\n[log]\nlevel = 'info'\n")
    new = configured("[jobs]\nretention = '2h'\n[mqtt]\nurl = 'mqtt://b'\n[log]\nlevel = 'error'\n")
    await Reload(started, lambda: new, []).run()
    told = "changed, but only a restart makes it so: jobs.retention, mqtt.url"
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [told]
    caplog.clear()
    await Reload(started, lambda: started, []).run()
    assert [r.levelname for r in caplog.records if r.levelname == "WARNING"] == []


def test_every_key_that_is_taken_over_is_one():
    assert {dotted for dotted, _ in leaves()} >= LIVE


def test_a_problem_is_a_config_error(configured):
    with pytest.raises(ConfigError):
        configured("[http]\nlisten = 'x'")
