"""Carries notices of alerts outside: a log line for each, and a webhook if one is given.

The webhook gets what Alertmanager's API takes (POST, a JSON array). Whoever notifies never waits:
one thread sends, its queue is bounded, and at the bound the oldest notice is dropped and counted.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import urlsplit

from controller.core.errors import InvalidRequest
from controller.core.limits import DEFAULT_LIMITS, MILLISECOND_NS, Limits
from controller.core.model import Alert, AlertState

log = logging.getLogger(__name__)

BATCH_MAX = 100  # notices of one POST
TIMEOUT_S = 5.0  # of connecting, and of each read
BACK_OFF_S = (0.2, 1.0, 5.0)  # the waits before the second and each further try
CLOSE_S = 5.0  # how long close waits for what is queued
HURRIED_BACK_OFF_S = 0.1  # instead of the waits above while close waits
# Answers that another try may change; other refusals of the receiver are final.
_RETRIED_STATUS = frozenset({408, 429})


class Notifier:
    """Tells people that alerts fire or have ended. Safe to call from one loop; close it at the end.

    The counters tell what has become of the notices handed to the webhook.
    """

    def __init__(
        self,
        webhook: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        back_off_s: tuple[float, ...] = BACK_OFF_S,
    ) -> None:
        """Check the webhook's address and start its thread.

        Raises:
            InvalidRequest: the address is none that can be posted to.
        """
        self.sent_count = 0
        self.failed_count = 0  # given up after the last try
        self.dropped_count = 0  # fallen out of the full queue, or left over at close
        self._queued_max = limits.notices_queued_max
        self._back_off_s = back_off_s
        self._queue: deque[Alert] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._hurry = threading.Event()  # ends the wait between two tries
        self._thread: threading.Thread | None = None
        if webhook is not None:
            self._url, self._receiver = webhook, checked_receiver(webhook)
            self._opener = urllib.request.build_opener(_NoRedirect)
            self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
            self._thread.start()

    def notify(self, alert: Alert) -> None:
        """Log the alert and queue it for the webhook. Never waits for the receiver."""
        level = logging.INFO if alert.state is AlertState.RESOLVED else logging.WARNING
        log.log(level, "%s", _line(alert))
        if self._thread is None:
            return
        with self._changed:
            if self._closing or len(self._queue) >= self._queued_max:
                self.dropped_count += 1
                if self._closing:
                    return
                self._queue.popleft()
            self._queue.append(alert)
            self._changed.notify()

    async def close(self) -> None:
        """Send what is queued, for at most 5 s, and stop. Calling it again changes nothing."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._hurry.set()
        await asyncio.to_thread(self._thread.join, CLOSE_S)
        with self._changed:
            left_count = len(self._queue)
            self._queue.clear()
            self.dropped_count += left_count
        if left_count:
            log.warning("webhook receiver=%s left_unsent=%d", self._receiver, left_count)
        self._thread = None

    def _run(self) -> None:
        """Send batches until closed and empty."""
        reported_count = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                count = min(BATCH_MAX, len(self._queue))
                batch = [self._queue.popleft() for _ in range(count)]
                dropped_count = self.dropped_count
            if not batch:
                return
            if dropped_count > reported_count:
                log.warning(
                    "webhook receiver=%s queue_full dropped=%d",
                    self._receiver,
                    dropped_count - reported_count,
                )
                reported_count = dropped_count
            self._send(batch)

    def _send(self, batch: list[Alert]) -> None:
        """Post a batch, again after each back-off, until it is taken or given up."""
        body = json.dumps([payload(alert) for alert in batch]).encode()
        tries = 0
        while True:
            tries += 1
            problem, final = self._post(body)
            if not problem:
                self.sent_count += len(batch)
                return
            if final or tries > len(self._back_off_s):
                break
            back_off_s = self._back_off_s[tries - 1]
            if self._hurry.wait(back_off_s):
                time.sleep(min(back_off_s, HURRIED_BACK_OFF_S))
        self.failed_count += len(batch)
        log.error(
            "webhook receiver=%s notices=%d given_up_after_tries=%d problem=%s",
            self._receiver,
            len(batch),
            tries,
            _quoted(problem),
        )

    def _post(self, body: bytes) -> tuple[str, bool]:
        """Return what went wrong, "" for nothing, and whether another try is in vain."""
        request = urllib.request.Request(
            self._url, body, {"Content-Type": "application/json", "User-Agent": "mass"}
        )
        try:
            # The answer's body says nothing that is needed, so it is not read.
            self._opener.open(request, timeout=TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            error.close()
            final = error.code < 500 and error.code not in _RETRIED_STATUS
            return f"HTTP {error.code} {error.reason}", final
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: an address, or a proxy of the environment, that nobody can look up.
            reason = getattr(error, "reason", None) or error
            return f"{type(error).__name__}: {reason}", False
        return "", False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for a refusal: following it would turn the POST into a GET."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> None:
        return None


def checked_receiver(url: str) -> str:
    """Return host and port of an address; they alone are logged, as a path may hold a secret."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # what the look-up of the name does
    except ValueError as error:
        raise InvalidRequest(f"--webhook '{url}' is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidRequest(f"--webhook '{url}' is no http:// or https:// address")
    if parts.username is not None:
        raise InvalidRequest(f"--webhook '{host}': an address with a user name cannot be used")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequest(f"--webhook '{url}' holds characters that no address may hold")
    return host if port is None else f"{host}:{port}"


def payload(alert: Alert) -> dict[str, object]:
    """Return the alert as Alertmanager's API v2 takes it; `endsAt` only where it has ended."""
    notice: dict[str, object] = {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": rfc3339(alert.fired_at_ns),
        "generatorURL": "",
    }
    if alert.state is AlertState.RESOLVED:
        notice["endsAt"] = rfc3339(alert.resolved_at_ns)
    return notice


def rfc3339(at_ns: int) -> str:
    """Return an instant (nanoseconds since the epoch) in UTC with milliseconds."""
    milliseconds = at_ns // MILLISECOND_NS
    instant = datetime.fromtimestamp(milliseconds // 1_000, UTC)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1_000:03d}Z"


def _line(alert: Alert) -> str:
    """Return the log line of an alert: the event, then key=value."""
    event = "alert_resolved" if alert.state is AlertState.RESOLVED else "alert_fires"
    own: Mapping[str, str] = {"alert": alert.name, "node_id": alert.node_id}
    others = {k: v for k, v in alert.labels.items() if k not in ("alertname", "node")}
    pairs = {**own, "value": f"{alert.value:.6g}", **others, **alert.annotations}
    return " ".join([event, *(f"{key}={_quoted(value)}" for key, value in pairs.items())])


def _quoted(value: str) -> str:
    """Return a value as it stands if it is one plain word, else in quotes."""
    plain = value.isascii() and value.isprintable() and not set(value) & set(' ="\\')
    return value if plain and value else json.dumps(value)
