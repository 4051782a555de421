"""Sends the webhooks of jobs that have ended. Runs on threads of its own, next to each planner.

A try is claimed from the ledger, sent, and settled there. A sender that is killed in between leaves
a claim that expires: another sender tries again, with the same id. So a webhook is sent at least
once. Slow receivers hold threads of the sender, and nothing else waits for those.
"""

import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from clipfleet.common.errors import NotFound, Unavailable, Unreadable
from clipfleet.common.fetch import Cancellation, Cancelled, LookUpsBusy
from clipfleet.common.fetch.network import AddressRefused
from clipfleet.common.fetch.post import Poster, Reply
from clipfleet.common.http.webhooks import ID, SIGNATURE, TIMESTAMP, WebhookState, signature
from clipfleet.common.ledger import Job, Ledger
from clipfleet.common.ledger.shown import job_out
from clipfleet.common.ledger.webhooks import WebhookClaim, Webhooks
from clipfleet.common.process.logs import OutageLog, log_context
from clipfleet.common.settings import Webhooks as WebhookSettings
from clipfleet.common.shares import may_take
from clipfleet.common.versions import OtherVersion, warn_once
from clipfleet.workers.metrics import PlannerMetrics

log = logging.getLogger(__name__)

POLL_S = 0.5
GROWTH = 3.0  # of the pause between two tries
MAX_PAUSE_S = 7_200.0
JITTER = 0.2  # of a pause: webhooks that failed together are not sent again together
SETTLE_S = 15.0  # after the timeout of a try, until its claim expires
SETTLE_WAITS_S = (0.5, 1.0, 2.0, 2.0, 2.0)  # before it is tried again to record what became of it
STOP_S = 3.0
TEMPORARY = (408, 425, 429)  # client errors after which another try may succeed


@dataclass(frozen=True)
class Outcome:
    """What became of a try.

    Attributes:
        state: "pending": another try may succeed.
        reason: why it failed; "": it did not.
        after_s: the seconds that the receiver asks to wait; None: it does not say.
    """

    state: WebhookState
    reason: str = ""
    after_s: float | None = None


class WebhookSender:
    """Sends due webhooks until it is stopped.

    Args:
        webhooks: the port of due webhooks.
        ledger: has the jobs.
        poster: sends the requests.
        settings: limits and pauses.
        metrics: counts the tries.
        clock: unix seconds.
    """

    def __init__(
        self,
        webhooks: Webhooks,
        ledger: Ledger,
        poster: Poster,
        settings: WebhookSettings,
        metrics: PlannerMetrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._webhooks, self._ledger, self._poster = webhooks, ledger, poster
        self._settings, self._clock = settings, clock
        self._metrics = metrics or PlannerMetrics()
        self._lock = threading.Lock()
        self._hosts, self._keys = Counter[str](), Counter[str]()  # of the webhooks under way
        self._threads = set[threading.Thread]()
        self._ended = threading.Event()  # a thread has ended
        self._cancellation = Cancellation()

    def run(self, stopping: threading.Event) -> None:
        """Send webhooks until `stopping` is set, and then give back those under way."""
        outage = OutageLog(log, "webhooks cannot be sent")
        while not stopping.is_set():
            self._ended.clear()
            try:
                while not stopping.is_set() and self.start_next():
                    pass
                outage.back()
            except Unavailable as error:
                outage.away(error.detail)
            except Exception:
                log.exception("webhooks cannot be sent now")
            self._ended.wait(POLL_S)
        self._cancellation.cancel()
        until = time.monotonic() + STOP_S
        for thread in tuple(self._threads):
            thread.join(max(0.0, until - time.monotonic()))

    def start_next(self) -> bool:
        """Begin to send a webhook that is due, on a thread of its own.

        Returns:
            False when none is due, or no thread is free.

        Raises:
            Unavailable: Redis is away.
        """
        with self._lock:
            free = self._settings.at_once - self._hosts.total()
            if free <= 0:
                return False
            hosts, keys = self._full_hosts(free), self._full_keys(free)
        lease_s = self._settings.timeout_s + SETTLE_S
        claim = self._webhooks.claim(lease_s, full_hosts=hosts, full_keys=keys)
        if claim is None:
            return False
        thread = threading.Thread(
            target=self._send_and_release, args=(claim,), name="webhook", daemon=True
        )
        with self._lock:
            self._hosts[claim.host] += 1
            self._keys[claim.key] += 1
            self._threads.add(thread)
        thread.start()
        return True

    def _full_hosts(self, free: int) -> Collection[str]:
        """Hosts that may have no further webhook under way: a host that has none always may."""
        limit = self._settings.per_host
        return [
            host for host, held in self._hosts.items() if held >= limit or not may_take(held, free)
        ]

    def _full_keys(self, free: int) -> Collection[str]:
        return [key for key, held in self._keys.items() if key and not may_take(held, free)]

    def _send_and_release(self, claim: WebhookClaim) -> None:
        try:
            with log_context(job_id=claim.job_id):
                self.send(claim)
        except Unavailable as error:
            log.warning("the state of a webhook cannot be recorded: %s", error.detail)
        except Exception:
            log.exception("a webhook cannot be sent")
        finally:
            with self._lock:
                for counter, name in ((self._hosts, claim.host), (self._keys, claim.key)):
                    counter[name] -= 1
                    if not counter[name]:
                        del counter[name]
                self._threads.discard(threading.current_thread())
            self._ended.set()

    def send(self, claim: WebhookClaim) -> None:
        """Send a webhook once, and record what became of it.

        Raises:
            Unavailable: Redis is away. The webhook is sent again once the claim has expired.
        """
        try:
            job = self._ledger.job(claim.job_id)
        except NotFound:  # it was removed meanwhile
            return
        except OtherVersion as error:
            warn_once(f"this planner cannot send the webhook of the job: {error.detail}")
            return
        try:
            outcome = self._try(job)
        except Cancelled:
            self._webhooks.settle(claim, "pending", job.webhook_reason)
            return
        pause_s = self._pause_s(claim.tries, outcome)
        if outcome.state == "pending" and self._is_over(job, pause_s):
            outcome = Outcome("failed", outcome.reason)
        self._settle(claim, outcome, pause_s)
        self._metrics.webhooks.labels(outcome.state).inc()
        if outcome.state == "failed":
            log.warning("the webhook of job %s has failed: %s", job.id, outcome.reason)
        else:
            log.info("webhook of job %s: %s %s", job.id, outcome.state, outcome.reason)

    def _settle(self, claim: WebhookClaim, outcome: Outcome, pause_s: float) -> None:
        """Record what became of a try, also if Redis is away for a moment."""
        for wait_s in (*SETTLE_WAITS_S, None):
            try:
                self._webhooks.settle(claim, outcome.state, outcome.reason, pause_s)
                return
            except Unavailable:
                if wait_s is None or self._cancellation.is_cancelled:
                    raise
            time.sleep(wait_s)

    def _try(self, job: Job) -> Outcome:
        webhook = job.new.webhook
        if webhook is None:
            return Outcome("failed", "its address is not known")
        body, now = body_of(job), int(self._clock())
        headers = {
            "Content-Type": "application/json",
            ID: id_of(job),
            TIMESTAMP: str(now),
            SIGNATURE: signature(webhook.secret, id_of(job), now, body),
        }
        try:
            with self._cancellation.scope():
                return outcome_of(self._poster.post(webhook.url, body, headers))
        except Cancelled:
            raise
        except AddressRefused as error:
            return Outcome("failed", str(error))
        except (Unreadable, LookUpsBusy) as error:
            return Outcome("pending", str(error))

    def _pause_s(self, tries: int, outcome: Outcome) -> float:
        pause_s = min(MAX_PAUSE_S, self._settings.pause_s * GROWTH ** min(tries - 1, 20))
        pause_s *= random.uniform(1 - JITTER, 1 + JITTER)
        return max(pause_s, min(outcome.after_s or 0.0, MAX_PAUSE_S))

    def _is_over(self, job: Job, pause_s: float) -> bool:
        return self._clock() + pause_s > (job.finished_at or 0.0) + self._settings.retry_s


def id_of(job: Job) -> str:
    """The id of a job's webhook, the same for each try. It contains no full stop."""
    return f"job_{job.id}"


def body_of(job: Job) -> bytes:
    """The body of a job's webhook."""
    ended_at = datetime.fromtimestamp(job.finished_at or 0.0, UTC)
    event = {
        "type": f"job.{job.state}",
        "timestamp": f"{ended_at:%Y-%m-%dT%H:%M:%S.%fZ}",
        "data": job_out(job).model_dump(exclude={"webhook"}),
    }
    return json.dumps(event, separators=(",", ":")).encode()


def outcome_of(reply: Reply) -> Outcome:
    """What the answer of a receiver means."""
    status = reply.status
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    reason = f"the receiver answered {status} {phrase}".rstrip()
    if 200 <= status < 300:
        return Outcome("delivered")
    if 300 <= status < 400:
        return Outcome("failed", f"{reason}; redirects are not followed")
    if status < 500 and status not in TEMPORARY:
        return Outcome("failed", reason)
    return Outcome("pending", reason, reply.retry_after_s)
