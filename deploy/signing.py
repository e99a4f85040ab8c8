"""The signature of a release: SHA256SUMS, signed with a key of the releaser by ssh-keygen, which every Debian has.

Whoever verifies it takes the public keys from deploy/allowed_signers of a clone, not from beside the files. A key that
is not listed there signs nothing, because nobody could verify it. SECURITY.md has the command that verifies.
"""

import subprocess
from pathlib import Path

from deploy.locked import REPOSITORY

SIGNERS = REPOSITORY / "deploy" / "allowed_signers"
IDENTITY, NAMESPACE = "releases", "correlator-release"


def refusal(key: Path, signers: Path = SIGNERS) -> str | None:
    """Why this key cannot sign a release, and what to do. None: it can."""
    try:
        public = _public(key)
    except subprocess.CalledProcessError as error:
        return f"{key} is no key that ssh-keygen can read: {error.stderr.strip()}"
    if any(public in line for line in signers.read_text().splitlines() if not line.startswith("#")):
        return None
    return (
        f"The key {key} is not listed in {signers.name}, so nobody could verify the release. Commit it first:\n"
        f"echo '{IDENTITY} {public}' >>deploy/allowed_signers"
    )


def sign(sums: Path, key: Path) -> Path:
    """Write the signature of `sums` beside it. `key`: a private key, or the public half of one that an agent holds."""
    signature = sums.with_name(f"{sums.name}.sig")
    signature.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(sums)]
    subprocess.run(command, check=True)
    return signature


def _public(key: Path) -> str:
    """The type and the public half of a key, of a private or a public file."""
    if key.suffix == ".pub":
        written = key.read_text()
    elif key.with_name(f"{key.name}.pub").is_file():
        written = key.with_name(f"{key.name}.pub").read_text()
    else:
        written = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(key)], check=True, capture_output=True, text=True
        ).stdout
    return " ".join(written.split()[:2])
