"""The settings of a cluster: what is right is one form, what is wrong is named with what would be right."""

import pytest

from correlator.config.loading import load
from correlator.config.schema import Tls, is_seed
from correlator.errors import ConfigError

SEED = "SU" + "A" * 56


def problems(environ, **keys):
    variables = {f"CORRELATOR_CLUSTER__{key.upper()}": str(value) for key, value in keys.items()}
    with pytest.raises(ConfigError) as caught:
        load(None, {"HOME": "/home/me", **environ, **variables})
    return caught.value.problems


def loaded(**keys):
    variables = {f"CORRELATOR_CLUSTER__{key.upper()}": str(value) for key, value in keys.items()}
    return load(None, {"HOME": "/home/me", **variables}).cluster


def test_addresses_of_servers_are_brought_to_one_form():
    url = loaded(url="nats://a, nats://b:4223 ,nats://[::1],nats://a:4222").url
    assert str(url) == "nats://a:4222,nats://b:4223,nats://[::1]:4222"
    assert loaded(url="tls://nats.example").url.tls
    assert loaded(url="").url is None


@pytest.mark.parametrize(
    "url",
    ["a:4222", "http://a", "nats://a,tls://b", "nats://me:pw@a", "nats://a/x", "nats://a:0", "nats://a,", "nats://a?x"],
)
def test_another_address_is_refused_and_no_password_of_it_is_shown(url):
    (line,) = problems({}, url=url)
    assert "expected nats://host:4222 or tls://host:4222" in line
    assert ":pw" not in line


def test_the_instance_is_the_first_label_of_the_host_made_valid(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "büro 7.example.org")
    assert loaded().instance == "b-ro-7"
    assert loaded(instance="dc_1-A").instance == "dc_1-A"
    for name in ("a.b", "a b", "x" * 65, "ü"):
        assert "1 to 64 of the characters" in problems({}, instance=name)[0]


def test_there_are_one_three_or_five_replicas():
    assert [loaded(replicas=n).replicas for n in (1, 3, 5)] == [1, 3, 5]
    for given in ("0", "2", "true", "x"):
        (line,) = problems({}, replicas=given)
        assert line.endswith("expected one of 1, 3, 5")


@pytest.mark.parametrize(("gateway", "name"), [(False, "cluster-key"), (True, "gateway-key")])
def test_the_private_key_of_the_certificate_is_a_credential_of_each_role(tmp_path, gateway, name):
    for file in ("cert", "cluster-key", "gateway-key"):
        (tmp_path / file).write_text("PEM")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "HOME": "/home/me", "CORRELATOR_CLUSTER__URL": "tls://a"}
    assert load(None, environ, gateway=gateway).cluster.tls is None
    environ["CORRELATOR_CLUSTER__TLS__CERT"] = str(tmp_path / "cert")
    cert, own = tmp_path / "cert", tmp_path / "own"
    assert load(None, environ, gateway=gateway).cluster.tls == Tls(cert=cert, key=tmp_path / name)
    own.touch()
    assert load(None, environ | {"CORRELATOR_CLUSTER__TLS__KEY": str(own)}).cluster.tls == Tls(cert=cert, key=own)
    (tmp_path / name).write_text("\n")
    with pytest.raises(ConfigError, match=r"cluster\.tls\.cert: expected together with cluster.tls.key"):
        load(None, environ, gateway=gateway)


def test_a_credentials_file_holds_a_user_or_a_seed(tmp_path):
    seed, creds, other = tmp_path / "seed", tmp_path / "user.creds", tmp_path / "other"
    seed.write_text(SEED + "\n")
    creds.write_text("-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n")
    other.write_text("hunter2")
    assert is_seed(seed)
    assert not is_seed(creds)
    (line,) = problems({}, url="nats://a", credentials_file=other)
    assert "expected a creds file" in line
    assert "hunter2" not in line
    assert "cannot be read" in problems({}, url="nats://a", credentials_file=tmp_path / "none")[0]


def test_tls_settings_need_a_tls_address():
    (line,) = problems({"CORRELATOR_CLUSTER__TLS__VERIFY": "false"}, url="nats://a")
    assert line == 'cluster.tls: expected with tls:// only, and cluster.url = "nats://a:4222" is plain'
