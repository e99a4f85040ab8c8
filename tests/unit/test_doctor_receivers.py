"""What the doctor says of webhooks: whether a receiver can be reached, and what the running daemon reports."""

import pytest

from correlator.config.webhooks import Webhook, WebhookUrl
from correlator.doctor import receivers
from tests.support.servers import free_port
from tests.support.webhook_receiver import Receiver


def webhook(url, name="chat", *, allow_private=True):
    return Webhook(name=name, url=WebhookUrl(url), allow_private=allow_private)


async def test_a_receiver_is_reached_without_a_request():
    async with Receiver() as receiver:
        check = await receivers.inspect_webhooks([webhook(receiver.url)], None)
        assert (check.status, check.summary) == ("ok", "connected to 1 of 1 receivers: chat")
        refused = await receivers.reach(webhook(receiver.url, allow_private=False))
        assert refused == "127.0.0.1 is private or loopback, and allow_private is false"
        assert receiver.requested == []


async def test_a_receiver_that_is_not_there_is_a_failure_without_the_path_of_its_url():
    url = f"http://127.0.0.1:{free_port()}/services/hunter2"
    check = await receivers.inspect_webhooks([webhook(url)], {"parts": {}})
    assert check.status == "failure"
    assert "Connect call failed" in check.detail[0] or "refused" in check.detail[0]
    assert "hunter2" not in str(check)


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ({"ok": True, "pending": 0, "disabled": False, "error": None}, "ok", "connected"),
        ({"ok": False, "pending": 7, "disabled": False, "error": "HTTP 503"}, "warning", "do not accept"),
        ({"ok": False, "pending": 0, "disabled": True, "error": "gone"}, "warning", "no more events"),
    ],
)
def test_what_the_daemon_reports_is_judged(state, status, words):
    check = receivers.judge_webhooks([webhook("https://h/x")], [None], {"chat": state})
    assert (check.status, words in check.summary) == (status, True)
    if status == "warning":
        assert check.detail == (f"chat: {state['error']}; {state['pending']} events are pending",)
