"""Notices: what is logged, what the webhook gets, and what happens when nobody takes it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from controller import notify
from controller.core.errors import InvalidRequest
from controller.core.limits import SECOND_NS, Limits
from controller.core.model import Alert, AlertState
from controller.notify import Notifier, payload, rfc3339

FIRED_NS = 1_767_261_600 * SECOND_NS  # 2026-01-01 10:00 UTC
QUICK_S = (0.01, 0.01, 0.01)


def make_alert(number: int = 3, resolved: bool = False) -> Alert:
    node = f"w{number}"
    return Alert(
        name="NodeMemoryHigh",
        node_id=node,
        state=AlertState.RESOLVED if resolved else AlertState.FIRING,
        labels={"severity": "warning", "alertname": "NodeMemoryHigh", "node": node},
        annotations={"summary": f"{node} uses 81.2 % of its memory"},
        value=81.23456789,
        active_at_ns=FIRED_NS - 120 * SECOND_NS,
        fired_at_ns=FIRED_NS,
        resolved_at_ns=FIRED_NS + 1_500_000_000 if resolved else 0,
    )


class Receiver:
    """An HTTP server on the loopback that keeps what it gets and answers as told."""

    def __init__(self) -> None:
        self.answers: list[int] = []  # of the next posts; 200 when there is none
        self.posts: list[tuple[str, str, list[dict[str, Any]]]] = []
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()
        self.entered = threading.Event()  # a post has arrived
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.entered.set()
                outer.gate.wait(10)
                kind = self.headers["Content-Type"]
                outer.posts.append((self.path, kind, json.loads(body)))
                status = outer.answers.pop(0) if outer.answers else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/api/v2/alerts?token=secret"

    @property
    def nodes(self) -> list[str]:
        """The nodes of all notices, in the order in which they came."""
        return [notice["labels"]["node"] for _, _, notices in self.posts for notice in notices]


@contextmanager
def serving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.gate.set()
        receiver.server.shutdown()
        thread.join()
        receiver.server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as found:
        yield found


def test_payload_is_what_alertmanager_takes() -> None:
    assert payload(make_alert()) == {
        "labels": {"severity": "warning", "alertname": "NodeMemoryHigh", "node": "w3"},
        "annotations": {"summary": "w3 uses 81.2 % of its memory"},
        "startsAt": "2026-01-01T10:00:00.000Z",
        "generatorURL": "",
    }
    assert payload(make_alert(resolved=True))["endsAt"] == "2026-01-01T10:00:01.500Z"


def test_instants_are_cut_to_milliseconds() -> None:
    assert rfc3339(1_999_999_999_999_999_999) == "2033-05-18T03:33:19.999Z"


async def test_each_notice_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier()
    with caplog.at_level(logging.INFO, "controller.notify"):
        notifier.notify(make_alert())
        notifier.notify(make_alert(resolved=True))
    await notifier.close()
    line = (
        "alert=NodeMemoryHigh node_id=w3 value=81.2346 severity=warning "
        'summary="w3 uses 81.2 % of its memory"'
    )
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", f"alert_fires {line}"),
        ("INFO", f"alert_resolved {line}"),
    ]


async def test_text_of_a_user_cannot_break_the_log_line(caplog: pytest.LogCaptureFixture) -> None:
    alert = make_alert()
    breaking = Alert(
        **{
            **{name: getattr(alert, name) for name in alert.__slots__},
            "annotations": {"summary": 'x" fake=1\nalert_fires alert=Fake \x1b[2J'},
        }
    )
    notifier = Notifier()
    notifier.notify(breaking)
    await notifier.close()
    (record,) = caplog.records
    assert record.message.isprintable()
    assert record.message.endswith(r'summary="x\" fake=1\nalert_fires alert=Fake \u001b[2J"')


async def test_webhook_gets_a_json_array(receiver: Receiver) -> None:
    notifier = Notifier(receiver.url)
    notifier.notify(make_alert())
    await notifier.close()
    assert receiver.posts == [
        ("/api/v2/alerts?token=secret", "application/json", [payload(make_alert())])
    ]
    assert (notifier.sent_count, notifier.failed_count, notifier.dropped_count) == (1, 0, 0)


async def test_notices_come_in_order_and_many_in_one_post(receiver: Receiver) -> None:
    notifier = Notifier(receiver.url)
    receiver.gate.clear()
    for number in range(250):
        notifier.notify(make_alert(number))
    receiver.gate.set()
    await notifier.close()
    assert receiver.nodes == [f"w{number}" for number in range(250)]
    assert max(len(notices) for _, _, notices in receiver.posts) == notify.BATCH_MAX
    assert len(receiver.posts) <= 4
    assert notifier.sent_count == 250


@pytest.mark.parametrize("status", [500, 503, 408, 429])
async def test_failed_post_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    notifier = Notifier(receiver.url, back_off_s=QUICK_S)
    notifier.notify(make_alert())
    await notifier.close()
    assert receiver.nodes == ["w3", "w3"]
    assert (notifier.sent_count, notifier.failed_count) == (1, 0)


async def test_batch_is_given_up_after_the_last_try_and_the_next_goes_out(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [500, 500, 500, 500]
    notifier = Notifier(receiver.url, back_off_s=QUICK_S)
    receiver.gate.clear()
    notifier.notify(make_alert(1))
    # The second must not join the first one's batch.
    assert await asyncio.to_thread(receiver.entered.wait, 5)
    notifier.notify(make_alert(2))
    receiver.gate.set()
    await notifier.close()
    assert receiver.nodes == ["w1"] * 4 + ["w2"]
    assert (notifier.sent_count, notifier.failed_count) == (1, 1)
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert 'notices=1 given_up_after_tries=4 problem="HTTP 500' in error.message
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [400, 404, 302])
async def test_final_refusal_is_not_repeated(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    notifier = Notifier(receiver.url, back_off_s=QUICK_S)
    notifier.notify(make_alert())
    await notifier.close()
    assert [path for path, _, _ in receiver.posts] == ["/api/v2/alerts?token=secret"]
    assert (notifier.sent_count, notifier.failed_count) == (0, 1)


async def test_dead_receiver_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: it refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        notifier = Notifier(url, back_off_s=QUICK_S)
        notifier.notify(make_alert())
        await notifier.close()
    assert (notifier.sent_count, notifier.failed_count) == (0, 1)
    assert "Connection refused" in caplog.text


async def test_proxy_that_cannot_be_looked_up_is_a_failure_and_the_next_notice_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://a..b:1")
    notifier = Notifier("http://alerts.example/", back_off_s=())
    for number in (1, 2):
        notifier.notify(make_alert(number))
        async with asyncio.timeout(5):
            while notifier.failed_count < number:
                await asyncio.sleep(0.001)
    await notifier.close()
    assert (notifier.sent_count, notifier.dropped_count) == (0, 0)


async def test_receiver_that_talks_nonsense_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        notifier = Notifier(f"http://127.0.0.1:{server.getsockname()[1]}", back_off_s=())
        notifier.notify(make_alert())
        await notifier.close()
        thread.join()
    assert (notifier.sent_count, notifier.failed_count) == (0, 1)


async def test_full_queue_drops_the_oldest_and_says_so(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(receiver.url, Limits(notices_queued_max=3))
    receiver.gate.clear()
    notifier.notify(make_alert(0))
    assert await asyncio.to_thread(receiver.entered.wait, 5)
    for number in range(1, 7):
        notifier.notify(make_alert(number))
    assert notifier.dropped_count == 3
    receiver.gate.set()
    await notifier.close()
    assert receiver.nodes == ["w0", "w4", "w5", "w6"]
    assert "queue_full dropped=3" in caplog.text


async def test_close_waits_no_longer_than_its_bound(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify, "CLOSE_S", 0.05)
    notifier = Notifier(receiver.url)
    receiver.gate.clear()
    notifier.notify(make_alert(0))
    assert await asyncio.to_thread(receiver.entered.wait, 5)
    notifier.notify(make_alert(1))
    notifier.notify(make_alert(2))
    async with asyncio.timeout(5):
        await notifier.close()
        await notifier.close()
    assert notifier.dropped_count == 2
    assert "left_unsent=2" in caplog.text
    notifier.notify(make_alert(3))  # is logged, and that is all
    receiver.gate.set()


async def test_close_does_not_sit_out_a_back_off(receiver: Receiver) -> None:
    receiver.answers = [500]
    notifier = Notifier(receiver.url, back_off_s=(60.0,))
    notifier.notify(make_alert())
    assert await asyncio.to_thread(receiver.entered.wait, 5)
    async with asyncio.timeout(2):
        await notifier.close()
    assert (notifier.sent_count, notifier.dropped_count) == (1, 0)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/x", "'ftp://host/x' is no http:// or https:// address"),
        ("file:///etc/passwd", "'file:///etc/passwd' is no http:// or https:// address"),
        ("host:9093", "'host:9093' is no http:// or https:// address"),
        ("http://", "'http://' is no http:// or https:// address"),
        ("http:///path", "'http:///path' is no http:// or https:// address"),
        ("", "'' is no http:// or https:// address"),
        ("http://host:port/", "'http://host:port/' is no address"),
        ("http://host:99999/", "'http://host:99999/' is no address"),
        ("http://[::1/", "'http://[::1/' is no address"),
        ("http://me:secret@host/", "'host': an address with a user name cannot be used"),
        ("http://a..b/", "'http://a..b/' is no address"),
        (f"http://{'a' * 64}.b/", f"'http://{'a' * 64}.b/' is no address"),
        ("http://host/a b", "'http://host/a b' holds characters that no address may hold"),
        ("http://host/\u00e9", "'http://host/\u00e9' holds characters that no address may hold"),
    ],
)
def test_bad_address_is_refused_at_the_start(url: str, problem: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Notifier(url)
    assert caught.value.message.startswith(f"--webhook {problem}")
