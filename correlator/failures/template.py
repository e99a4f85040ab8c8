"""The template of an error: its text without what differs from one job to the next.

IDs, names, sizes, times, addresses and paths are masked; words, errno, codes of HTTP and of APIs, exit statuses and
the ports of services stay, because they tell two failures apart. When in doubt a rule keeps a word: two fingerprints of
one failure are a smaller harm than one of two. The text is scanned once, from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MAX_TEXT, MAX_LINE = 4096, 1024
"""Characters of an error that are examined, and those of its telling line that count in the template."""

DYNAMIC_PORT = 10_000
"""Ports below it belong to services, and stay."""


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\S+", text))


_KEPT = _words(
    """
    x86 x64 x86_64 amd64 i386 i686 arm64 aarch64 win32 win64 e1000 e1000e rtl8139 vmxnet2 vmxnet3 virtio2
    virt-v2v v2v p2v virt-p2v qcow2 vmfs5 vmfs6 ext2 ext3 ext4 fat32 iso9660 udf1 nfs3 nfs4 smb1 smb2 smb3 s3
    lvm2 grub2 k8s ipv4 ipv6 http1 http2 h2 ssl3 tls1 x509 oauth2 md4 md5 sha1 sha256 sha512 rc4 3des aes128
    aes256 rsa2048 ed25519 pkcs8 pkcs12 base64 utf8 utf-8 utf16 utf-16 cp1252 int32 int64 uint32 uint64 float64
    log4j sata0 mysql8 vddk8 2fa
    """
)
"""Words with a digit that are the field's own terms, and no name or ID."""

_CODES = _words(
    """
    error errno errcode errorcode error_code code status signal http sqlstate rc ret retval returned return
    response reason exit fault hresult csexceptionerrorcode cserrorcode statuscode status_code exitcode
    exit_code
    """
)
"""A number after one of these words is a code, and stays."""

_SIZE = r"(?:[kmgtp]?i?b/s|[kmgtp]i?b|bytes?|bits?|[kmg]bps|[kmgt]|sectors?|blocks?)"
_TIME = r"(?:ns|us|µs|μs|ms|s|m|h|d)"
_UNIT = r"(?:(?:nano|micro|milli)?seconds?|secs?|minutes?|mins?|hours?|hrs?|days?)"
_HEX4 = "[0-9a-f]{1,4}"

_TOKENS = re.compile(
    rf"""
      (?P<url>[a-z][a-z0-9+.-]{{0,30}}://[^\s"'<>)\]}},]+)
    | (?P<id>\b[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}\b | \b(?:[0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}}\b)
    | (?P<n>\b\d{{4}}[-/]\d\d[-/]\d\d(?:[t ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)?(?:\ ?(?:z\b|utc\b|[+-]\d\d:?\d\d\b))?
          (?:\ [a-z]{{3,4}}\ m=[+-][\d.]+|\ m=[+-][\d.]+)?
        | \b\d\d:\d\d:\d\d(?:[.,]\d+)?\b)
    | (?P<host>(?<![\w.])\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![\w.]*\w)(?:/\d{{1,2}}\b)?
        | \[?(?<![\w:])(?:(?:{_HEX4}:){{7}}{_HEX4}|(?:{_HEX4}:){{1,6}}(?::{_HEX4}){{1,6}}
            |(?:{_HEX4}:){{1,7}}:|::1)\b\]?)
    | (?P<stored>\[[^\[\]\n/]{{1,40}}\]\ [^\s"',;)]+)
    | (?P<quoted>(?<!\w)'[^'\n]{{1,200}}'(?!\w) | "[^"\n]{{1,400}}" | ‘[^’\n]{{1,200}}’)
    | (?P<path>(?<![\w.>])(?:/|\./|~/|[a-z]:\\)(?=[\w.<$~{{])[\w.@%+~:$={{}}/\\<>-]*[\w}}>])
    | (?P<hex>\b0x[0-9a-f]+\b)
    | (?P<amount>(?<![\w.])\d+(?:[.,]\d+)?\ ?{_SIZE}(?!\w|-\w)
        | (?<![\w.])(?:\d+(?:\.\d+)?{_TIME})+(?!\w|-\w)
        | (?<![\w.])\d+(?:\.\d+)?[\ -]{_UNIT}\b)
    | (?P<name>\b[a-z0-9](?:[\w-]{{0,62}}[a-z0-9])?(?:\.[a-z0-9][\w-]{{0,62}}){{1,6}}(?=:\d|\b(?!\()))
    | (?P<number>(?<!\w)[-+]?\d+(?:[.,]\d+)*(?:\ ?%)? (?!\w|-\w) | (?<!\w)\d+%)
    | (?P<word>[^\W]+(?:[-_][^\W]+)*)
    | (?P<port>:\d+\b)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)

_DOMAIN = re.compile(
    r"\.(?:local|lan|corp|internal|example|com|net|org|io|test|localdomain|de|uk|eu|home|intra|lab|priv|[a-z]{2,4}\.[a-z]{2})$",
    re.IGNORECASE,
)
_EXTENSION = re.compile(r"\.([a-z][a-z0-9]{1,4})$", re.IGNORECASE)
_IDENTIFIER = re.compile(r"[A-Za-z]+(?:[_.][A-Za-z]+)*|[A-Z]{2,}(?:[ _][A-Z]+)*")
_RANDOM = re.compile(r"(?=\w*\d)[0-9a-fA-F]{8,}")
_WORDY = re.compile(r"v\d|[a-z-]+")
_LEADING = re.compile(r"^[^\w<\[(\"'/]+")
_JOINED = re.compile(r"<(?:id|name|n)>(?:[-_./]<(?:id|name|n)>|[-_]\w+)+")
_REPEATED = re.compile(r"(<[a-z.]+>)(?:(?:[ ,;/+&:x-]|and)+\1)+")
_BRACKETED = re.compile(r"\[(<[a-z.]+>)\]|\"(<(?:id|host|path)>)\"")
_URL = re.compile(
    r"([a-z][a-z0-9+.-]*)://(?:[^/@\s]*@)?(\[[^\]]*\]|[^/:?\s]*)(?::(\d+))?([^?\s]*)(?:\?(\S*))?", re.IGNORECASE
)
_COMMAND = re.compile(r"(?:^|&)command=(\w+)", re.IGNORECASE)
_FORMATTED = re.compile(r"%!(?:([a-zA-Z])\((?:MISSING|BADPREC|BADWIDTH)\)|\((?:NOVERB|MISSING)\))")
_FLAGS = re.compile(r"%%|%[-+# 0-9.]*")


def unformatted(text: str) -> str:
    """The text as it was before Go used it as a format, up to what is the same in both.

    `fmt.Errorf(text)` makes `95%!f(MISSING)ull` of `95% full`.
    """
    return _FLAGS.sub("%", _FORMATTED.sub(lambda found: "%" + (found[1] or ""), text))


def masked(text: str, name: str, mask: str) -> str:
    """`text` with `mask` for each `name` that is a whole word, in any case. Without a pattern: each job has its own."""
    low, name = text.lower(), name.lower()
    if not name or len(low) != len(text):
        return text
    made: list[str] = []
    done, at = 0, low.find(name)
    while at >= 0:
        end = at + len(name)
        if not _in_word(low, at - 1) and not _in_word(low, end):
            made += text[done:at], mask
            done = end
        at = low.find(name, end)
    return "".join([*made, text[done:]])


def template(text: str, names: Iterable[str] = ()) -> str:
    """The text with what differs between jobs masked. `names`: those that stand in the job's own row, longest first."""
    text = _FORMATTED.sub("%", text[:MAX_LINE])
    for name in names:
        text = masked(text, name, "<id>")
    return _template(text)


def _template(text: str) -> str:
    made: list[str] = []
    codes = _Codes()
    for found in _TOKENS.finditer(text):
        kind, token = found.lastgroup or "other", found[0]
        if kind == "other":
            made.append(" " if token.isspace() or ord(token) > 0x2000 else token)
            continue
        made.append(shown := _mask(kind, token, codes, made))
        codes.after(kind, token, shown)
    flat = _JOINED.sub("<id>", _LEADING.sub("", " ".join("".join(made).split())))
    while (shorter := _REPEATED.sub(r"\1", flat)) != flat:
        flat = shorter
    return _BRACKETED.sub(lambda found: found[1] or found[2], flat).strip(" .;:,!")


class _Codes:
    """Whether a number at this place of the text is a code: one of the two words before it says so."""

    def __init__(self) -> None:
        self.last = self._before = ""
        self._is_code = False

    @property
    def expected(self) -> bool:
        return self.last in _CODES or self._before in _CODES

    @property
    def follows_code(self) -> bool:
        """True after a number that was a code: in brackets, its SQLSTATE follows."""
        return self._is_code or self.last == "sqlstate"

    def after(self, kind: str, token: str, shown: str) -> None:
        self._is_code = kind in ("number", "port") and shown == token
        if kind in ("word", "name"):
            self._before, self.last = self.last, token.lower()
        elif kind == "quoted":
            self._before, self.last = "", token[1:-1].lower()
        else:
            self._before = self.last = ""


def _in_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _port(digits: str) -> str:
    return f":{digits}" if len(digits) < 6 and int(digits) < DYNAMIC_PORT else ":<port>"


def _file(path: str) -> str:
    """A path as its extension."""
    found = _EXTENSION.search(path)
    return f"<path.{found[1].lower()}>" if found and not found[1].isdigit() else "<path>"


def _mask_url(token: str) -> str:
    found = _URL.match(token)
    if found is None:
        return "<path>"
    scheme, _, port, path, query = found.groups()
    if scheme.lower() in ("nbd", "nbds", "file", "ssh"):
        path = ""
    segments = [s if not s or _WORDY.fullmatch(s) else "<id>" for s in path.rstrip(":.").lower().split("/")]
    command = _COMMAND.search(query or "")  # CloudStack names its call in the query.
    return f"{scheme.lower()}://<host>{_port(port) if port else ''}{'/'.join(segments)}" + (
        f"?{command[1].lower()}" if command else ""
    )


def _mask_quoted(token: str) -> str:
    inner = token[1:-1]
    if _IDENTIFIER.fullmatch(inner):
        return f'"{inner.lower()}"'
    return f'"{_template(inner)}"' if any(sign in inner for sign in (" ", "://", "<")) else '"<name>"'


def _mask_path(token: str) -> str:
    return "<dev>" if token.startswith("/dev/") else _file(token)


def _mask_name(token: str) -> str:
    """Dotted names: hosts, files, versions, and identifiers of code, which stay."""
    if _DOMAIN.search(token):
        return "<host>"
    if not any(c.isdigit() for c in token):
        return token.lower()
    if token[0].isdigit():
        return "<n>"
    found = _EXTENSION.search(token)
    return _file(token) if found and found[1].isalpha() else "<id>"


def _mask_number(token: str, codes: _Codes, made: list[str]) -> str:
    plain = token.lstrip("-").isdigit()
    sqlstate = codes.follows_code and made[-1:] == ["("] and len(token) == 5
    if plain and (codes.expected or sqlstate or (codes.last == "port" and len(token) < 5)):
        return token
    return "<n>"


def _mask_port(token: str, codes: _Codes, made: list[str]) -> str:
    if codes.expected:
        return token
    return _port(token[1:]) if made and made[-1].endswith((">", "]", "localhost")) else ":<n>"


def _mask_word(token: str, codes: _Codes, _: list[str]) -> str:
    low = token.lower()
    if not any(c.isdigit() for c in low) or low in _KEPT or (codes.follows_code and len(token) == 5):
        return low
    return "<id>"


def _mask_hex(token: str, codes: _Codes, made: list[str]) -> str:
    return token.lower() if codes.expected and made else "<id>"


_FIXED = {"id": "<id>", "n": "<n>", "host": "<host>", "amount": "<n>"}
_ALONE: dict[str, Callable[[str], str]] = {
    "url": _mask_url,
    "stored": _file,
    "quoted": _mask_quoted,
    "path": _mask_path,
    "name": _mask_name,
}
_IN_PLACE: dict[str, Callable[[str, _Codes, list[str]], str]] = {
    "hex": _mask_hex,
    "number": _mask_number,
    "port": _mask_port,
    "word": _mask_word,
}
"""How a token is masked: always alike, by itself, or by what stands before it."""


def _mask(kind: str, token: str, codes: _Codes, made: list[str]) -> str:
    if (fixed := _FIXED.get(kind)) is not None:
        return fixed
    if (alone := _ALONE.get(kind)) is not None:
        return alone(token)
    return _IN_PLACE[kind](token, codes, made)
