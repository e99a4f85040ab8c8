"""The file of a configuration and its drop-ins: read in order, the last value is used, and each place is named."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.config import files
from correlator.config.loading import load, loaded
from correlator.config.rendering import reference
from correlator.errors import ConfigError

HOME = {"HOME": "/home/me"}


@pytest.fixture
def etc(tmp_path):
    """A folder with an empty correlator.toml and conf.d."""
    (tmp_path / "correlator.toml").touch()
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def refused(etc: Path, environ: dict[str, str] = HOME) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(etc / "correlator.toml", environ)
    return caught.value.problems


def test_drop_ins_are_read_by_name_after_the_file_and_the_last_value_is_used(etc):
    (etc / "correlator.toml").write_text("[jobs]\nmax_jobs = 1\nhistory = '1h'\nstalled_after = '1s'\n")
    (etc / "conf.d/20-b.toml").write_text("[jobs]\nmax_jobs = 3\n[database.tls]\nverify = false\n")
    (etc / "conf.d/10-a.toml").write_text(
        "[jobs]\nmax_jobs = 2\nstalled_after = '2s'\n[database]\ntls.ca = '/dev/null'\n"
    )
    found = loaded(etc / "correlator.toml", HOME)
    jobs, tls = found.config.jobs, found.config.database.tls
    assert (jobs.max_jobs, jobs.stalled_after, jobs.history) == (3, 2, 3600)
    assert tls is not None
    assert (tls.verify, tls.ca) == (False, Path("/dev/null"))
    assert [file.name for file in found.files] == ["correlator.toml", "10-a.toml", "20-b.toml"]


@pytest.mark.parametrize(("file", "folder"), [("gateway.toml", "gateway.d"), ("dc1.toml", "dc1.d")])
def test_each_file_has_a_folder_of_its_own(etc, file, folder):
    (etc / file).touch()
    (etc / folder).mkdir()
    (etc / folder / "a.toml").write_text("[jobs]\nmax_jobs = 3\n")
    (etc / "conf.d/a.toml").write_text("[jobs]\nmax_jobs = 4\n")
    assert load(etc / file, HOME).jobs.max_jobs == 3


def test_a_file_that_is_hidden_or_no_toml_is_no_drop_in(etc):
    for name in (".a.toml", "a.toml.bak", "a.toml~", "README"):
        (etc / "conf.d" / name).write_text("not toml")
    assert [file.name for file in loaded(etc / "correlator.toml", HOME).files] == ["correlator.toml"]


def test_the_file_may_be_missing_where_its_folder_is_there(etc):
    (etc / "correlator.toml").unlink()
    (etc / "conf.d/a.toml").write_text("[jobs]\nmax_jobs = 3\n")
    assert load(etc / "correlator.toml", HOME).jobs.max_jobs == 3
    (etc / "conf.d/a.toml").unlink()
    (etc / "conf.d").rmdir()
    assert refused(etc) == (f"{etc}/correlator.toml: cannot be read: No such file or directory",)


def test_a_key_in_two_files_is_a_warning_that_names_both_places(etc):
    (etc / "correlator.toml").write_text(reference())
    (etc / "conf.d/10-a.toml").write_text('[database.tls]\nca = ""\n[log]\nlevel = "info"\n')
    (etc / "conf.d/20-b.toml").write_text('# ours\n[log]\n\nlevel = "info"\n[database]\ntls = { ca = "" }\n')
    (etc / "conf.d/30-c.toml").write_text('log.level = "debug"\n')
    conf = etc / "conf.d"
    assert loaded(etc / "correlator.toml", HOME).twice == (
        f"log.level is set in {conf}/10-a.toml:4 and in {conf}/20-b.toml:4: the last one is used",
        f"database.tls.ca is set in {conf}/10-a.toml:2 and in {conf}/20-b.toml:6: the last one is used",
        f"log.level is set in {conf}/20-b.toml:4 and in {conf}/30-c.toml:1: the last one is used",
    )


def test_every_problem_names_its_file_and_line(etc):
    (etc / "correlator.toml").write_text("[jobs]\nmax_jobs = 1\n")
    (etc / "conf.d/10-a.toml").write_text("[http]\nlisten = '0.0.0.0:1'\n[jbos]\n\n[jobs]\nmax_jobs =  0\n")
    (etc / "conf.d/20-b.toml").write_text("[mqtt.tls]\nverify = true\nverifi = 1\n")
    at = f"{etc}/conf.d"
    assert [line.split(" = ")[0].split(": expected")[0] for line in refused(etc)] == [
        f"{at}/10-a.toml:6: jobs.max_jobs",
        f"{at}/10-a.toml:3: jbos: unknown section; did you mean jobs?",
        f"{at}/20-b.toml:3: mqtt.tls.verifi: unknown key; did you mean mqtt.tls.verify?",
        f"{at}/10-a.toml:2: http.listen",
    ]
    assert any(
        line.startswith('CORRELATOR_JOBS__MAX_JOBS = "many": expected')
        for line in refused(etc, HOME | {"CORRELATOR_JOBS__MAX_JOBS": "many"})
    )


def test_every_file_that_cannot_be_read_is_named(etc):
    conf = etc / "conf.d"
    (conf / "10-a.toml").write_text("[jobs]\nmax_jobs = \n")
    os.mkfifo(conf / "20-b.toml")
    (conf / "30-c.toml").write_bytes(b"\xff")
    (conf / "40-d.toml").symlink_to("nowhere")
    (conf / "50-e.toml").write_text("x = 1\n" * 200_000)
    wrong = refused(etc)
    assert [line.split(": ")[0] for line in wrong] == [str(path) for path in sorted(conf.iterdir())]
    for part, line in zip(("line 2", "no regular file", "utf-8", "No such file", "larger"), wrong, strict=True):
        assert part in line
    for path in conf.iterdir():
        path.unlink()
    (conf / "a.toml").write_text(".".join("a" * 2_000) + " = 1")
    assert refused(etc) == (f"{conf}/a.toml: not TOML that can be read: too deep",)


def test_the_number_of_drop_ins_is_bounded(etc):
    for number in range(files.MAX_DROP_INS + 1):
        (etc / f"conf.d/{number}.toml").touch()
    assert refused(etc) == (f"{etc}/conf.d: expected 100 files at most, not 101",)


def test_webhooks_of_all_files_are_kept_and_a_name_twice_names_both_places(etc):
    hook = '[[webhooks]]\nname = "{}"\nurl = "https://h.example/"\n'
    (etc / "correlator.toml").write_text(hook.format("a"))
    (etc / "conf.d/10-b.toml").write_text(hook.format("b") + hook.format("c"))
    assert [one.name for one in load(etc / "correlator.toml", HOME).webhooks] == ["a", "b", "c"]
    (etc / "conf.d/20-d.toml").write_text(hook.format("d") + "\n" + hook.format("b") + "timeout = 0\n")
    assert [line.split(" = ")[0] for line in refused(etc)] == [
        f"{etc}/conf.d/20-d.toml:8: webhooks[5].timeout",
        f"{etc}/conf.d/20-d.toml:6: webhooks[5].name",
    ]
    assert f"the one in {etc}/conf.d/10-b.toml:2 has it already" in refused(etc)[1]


def test_the_place_of_a_table_inside_a_section_is_found_in_each_file(etc):
    secret = etc / "secret"
    secret.write_text("a-token-of-somebody")
    for name, text in (
        ("correlator.toml", f"[http]\nmax_readers = 1\n[[http.tokens]]\nname = 'a'\nfile = '{secret}'\n"),
        ("conf.d/10-b.toml", f"# b\n[http]\n[[http.tokens]]\nname = 'B'\nfile = '{secret}'\n"),
        ("conf.d/20-c.toml", f"[[http.tokens]]\nfile = '{secret}'\n\n[[http.tokens]]\nname = 'd'\nfiel = ''\n"),
    ):
        (etc / name).write_text(text)
    assert [line.split(":")[:2] for line in refused(etc)] == [
        [f"{etc}/conf.d/10-b.toml", "4"],
        [f"{etc}/conf.d/20-c.toml", "6"],
        [f"{etc}/conf.d/10-b.toml", "5"],
        [f"{etc}/conf.d/20-c.toml", "2"],
        [f"{etc}/conf.d/20-c.toml", "1"],
        [f"{etc}/conf.d/20-c.toml", "4"],
    ]


values = st.recursive(
    st.text(max_size=4) | st.integers(0, 9) | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
names = st.sampled_from("abcde")


@st.composite
def documents(draw):
    """A text of TOML, and the line of each of its keys."""
    lines: list[str] = []
    expected = {}
    for table in draw(st.lists(names, unique=True, max_size=3)):
        lines.append(f"[{table}]")
        for name in draw(st.lists(names, unique=True, max_size=4)):
            lines += draw(st.lists(st.sampled_from(["", "# x = 1", "  # ["]), max_size=2))
            expected[table, name] = len(lines) + 1
            value = json.dumps(draw(values)).replace("\\ud", "\\u0d").replace("\x7f", "")
            split = draw(st.booleans()) and value.startswith("[") and '"' not in value
            lines += f"{name} = {value}".replace(", ", ",\n# ]\n").split("\n") if split else [f"{name} = {value}"]
            if draw(st.booleans()):
                lines += [f'{name}_ = """', "[a]", f"{name} = 1", '"""']
    return "\n".join(lines), expected


@given(documents())
def test_the_line_of_a_key_is_where_it_begins(made):
    text, expected = made
    tomllib.loads(text)
    path = Path("/x.toml")
    read = files.Files({path: text}, {path: tomllib.loads(text)})
    for (table, name), line in expected.items():
        assert read.place(f"{table}.{name}") == (path, line)
