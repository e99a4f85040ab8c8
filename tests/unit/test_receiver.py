"""A receiver by HTTP: which addresses it may have, and what a response means to traces and to webhooks."""

import contextlib
import ipaddress

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from correlator.sinks import receiver
from correlator.sinks.otlp.receiver import JSON
from correlator.sinks.otlp.receiver import judge as of_traces
from correlator.sinks.receiver import ForbiddenAddress, Response, Verdict, guarded_socket, refusal
from correlator.sinks.webhooks import judge as of_webhooks

AT = 1_758_553_933.0

# The response


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("9" * 400, 999_999_999.0),
        ("Mon, 22 Sep 2025 15:12:43 GMT", 30.0),
        ("Mon, 22 Sep 2025 15:12:03 GMT", 0.0),
        *((text, 0.0) for text in ("", "-1", "soon", "1.5", "٣", "Mon, 99 Sep 99999 99:99:99 GMT")),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(text, seconds):
    assert receiver.retry_after(text, AT) == seconds


def test_the_reason_of_a_failed_attempt_has_no_path_of_the_url():
    url = URL("https://chat.example/services/T0")
    request = aiohttp.RequestInfo(url, "POST", CIMultiDictProxy(CIMultiDict()), url)
    errors = [aiohttp.InvalidURL(url), aiohttp.ClientResponseError(request, ())]
    kinds = [aiohttp.ClientError]
    for kind in kinds:  # The list grows meanwhile.
        kinds += kind.__subclasses__()
        for arguments in ((f"Failed at {url}",), (None, f"Failed at {url}")):
            with contextlib.suppress(TypeError, AttributeError):  # It takes other arguments.
                if "T0" in str(error := kind(*arguments)):
                    errors.append(error)
    assert len(errors) > 10
    for error in errors:
        assert "T0" not in "".join(receiver.describe_error(error)), repr(error)


@pytest.mark.parametrize(
    ("status", "traces", "webhooks"),
    [
        *((status, Verdict.ACCEPTED, Verdict.ACCEPTED) for status in (200, 201, 202, 204, 299)),
        *((status, Verdict.AWAY, Verdict.AWAY) for status in (None, 429, 502, 503, 504)),
        *((status, Verdict.GONE, Verdict.AWAY) for status in (301, 307, 401, 403, 404, 405)),
        *((status, Verdict.REFUSED, Verdict.AWAY) for status in (408, 500, 501, 599)),
        *((status, Verdict.REFUSED, Verdict.REFUSED) for status in (400, 409, 413, 422)),
        (415, Verdict.GONE, Verdict.REFUSED),
        (410, Verdict.REFUSED, Verdict.GONE),
    ],
)
def test_a_status_means_what_the_specifications_of_otlp_and_of_standard_webhooks_say(status, traces, webhooks):
    response = Response(status, error="why")
    assert (of_traces(response, JSON).verdict, of_webhooks(response)) == (traces, webhooks)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        *("127.9.9.9", "10.1.2.3", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
        *("::1", "fd12::5", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:a00:1::"),
    ],
)
def test_a_private_address_needs_the_permission_however_it_is_written(address):
    assert refusal(address, allow_private=True) is None
    assert "allow_private" in (refusal(address, allow_private=False) or "")
    with pytest.raises(ForbiddenAddress):
        guarded_socket((2, 1, 6, "", (address, 443)), allow_private=False)


@pytest.mark.parametrize(
    "address",
    [
        *("0.1.2.3", "169.254.169.254", "224.0.0.1", "240.0.0.1", "192.0.2.1", "192.0.0.192", "192.88.99.1"),
        *("::", "fe80::1%eth0", "ff02::1", "fec0::1", "::7f00:1", "2001:db8::1", "::ffff:169.254.169.254", "x", ""),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "::ffff:0:808:808", "2002:a9fe:a9fe::", "198.18.0.1"),
        *("2001::1", "3fff::1", "5f00::1", "100::1", "4000::1"),
        *("168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "100.100.100.200"),
        *("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
    ],
)
def test_an_address_of_another_use_is_never_allowed(address):
    assert refusal(address, allow_private=True) is not None


@given(st.integers(0, 2**128 - 1))
def test_no_address_raises_and_what_needs_no_permission_is_global(number):
    for public in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert refusal(public, allow_private=False) is None
    for address in (ipaddress.IPv6Address(number), ipaddress.IPv4Address(number & 0xFFFFFFFF)):
        if refusal(str(address), allow_private=False) is None:
            assert address.is_global
            assert not address.is_multicast
