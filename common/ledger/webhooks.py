"""The port of webhooks that are due: each job with a webhook that has ended, until it is settled.

Their state is part of the job: `Job.webhook`. A claim expires, so that the webhook of a sender that
was killed is sent by another one, with the same id.
"""

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import redis

from clipfleet.common.http.webhooks import WebhookState
from clipfleet.common.ledger import FINAL, Job, random_name
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.redis.client import translating_redis_errors

SCRIPT = (Path(__file__).parent / "webhooks.lua").read_text()


@dataclass(frozen=True)
class WebhookClaim:
    """The right to send the webhook of a job.

    Attributes:
        job_id: the id of the job.
        token: random, one for each claim.
        tries: how often it was claimed, this time included.
        host: the host of its URL.
        key: the name of the API key that started the job; "": none.
    """

    job_id: str
    token: str
    tries: int
    host: str
    key: str


class Webhooks(Protocol):
    """The port of due webhooks.

    Implementations: `RedisWebhooks` for a service, `MemoryWebhooks` for tests. Every call raises
    Unavailable when Redis is away.
    """

    def claim(
        self, seconds: float, *, full_hosts: Collection[str] = (), full_keys: Collection[str] = ()
    ) -> WebhookClaim | None:
        """Claim a webhook that is due. API keys and hosts take turns.

        Args:
            seconds: the time after which the webhook is due again, unless it is settled.
            full_hosts: hosts whose webhooks are passed over.
            full_keys: names of API keys whose webhooks are passed over.

        Returns:
            The claim; None when no such webhook is due.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def settle(
        self, claim: WebhookClaim, state: WebhookState, reason: str = "", pause_s: float = 0.0
    ) -> bool:
        """Record what became of a try.

        Args:
            claim: the claim.
            state: "pending": it is due again after `pause_s`.
            reason: why the last try failed.
            pause_s: seconds.

        Returns:
            False, without a change, when the webhook is settled already, when another sender has
            claimed it and this one has not delivered it, or when the job was removed.

        Raises:
            Unavailable: Redis is away.
        """
        ...


class MemoryWebhooks:
    """Due webhooks of a ledger in memory, for tests.

    Args:
        ledger: the ledger.
        clock: returns unix seconds.
        unique: returns another token at each call.
    """

    def __init__(
        self,
        ledger: MemoryLedger,
        clock: Callable[[], float] = time.time,
        unique: Callable[[], str] = random_name,
    ) -> None:
        self._ledger, self._clock, self._unique = ledger, clock, unique
        self._due_at: dict[str, float] = {}
        self._tokens: dict[str, str] = {}
        self._served_at: dict[tuple[str, str], float] = {}  # by host and key

    def claim(
        self, seconds: float, *, full_hosts: Collection[str] = (), full_keys: Collection[str] = ()
    ) -> WebhookClaim | None:
        with self._ledger.lock:
            now, due = self._clock(), list[tuple[float, float, str, str, str]]()
            for job in self._ledger.jobs(limit=2**31):
                if job.webhook == "pending" and job.state in FINAL:
                    host, key = job.webhook_host, job.key
                    at = self._due_at.setdefault(job.id, job.finished_at or now)
                    if at <= now and host not in full_hosts and key not in full_keys:
                        turn = max(at, self._served_at.get((host, key), 0.0))
                        due.append((turn, at, job.id, host, key))
            if not due:
                return None
            _, _, job_id, host, key = min(due)
            tries = self._ledger.job(job_id).webhook_tries + 1
            self._ledger.change(job_id, webhook_tries=tries)
            self._due_at[job_id] = now + seconds
            self._tokens[job_id] = self._unique()
            self._served_at[host, key] = now
            return WebhookClaim(job_id, self._tokens[job_id], tries, host, key)

    def settle(
        self, claim: WebhookClaim, state: WebhookState, reason: str = "", pause_s: float = 0.0
    ) -> bool:
        with self._ledger.lock:
            jobs = {job.id: job for job in self._ledger.jobs(limit=2**31)}
            job: Job | None = jobs.get(claim.job_id)
            holds = self._tokens.get(claim.job_id) == claim.token
            if job is None or job.webhook != "pending" or not (holds or state == "delivered"):
                return False
            self._tokens.pop(claim.job_id, None)
            self._due_at[claim.job_id] = self._clock() + pause_s
            self._ledger.change(claim.job_id, webhook=state, webhook_reason=reason)
            return True


class RedisWebhooks:
    """Due webhooks in Redis, in one queue for each host and API key.

    Args:
        client: see `make_redis`.
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
        unique: returns another token at each call.
    """

    def __init__(
        self,
        client: "redis.Redis",
        clock: Callable[[], float] | None = None,
        unique: Callable[[], str] = random_name,
    ) -> None:
        self._script, self._clock, self._unique = client.register_script(SCRIPT), clock, unique

    def claim(
        self, seconds: float, *, full_hosts: Collection[str] = (), full_keys: Collection[str] = ()
    ) -> WebhookClaim | None:
        token = self._unique()
        full = {"hosts": dict.fromkeys(full_hosts, 1), "keys": dict.fromkeys(full_keys, 1)}
        answer = self._run("claim", token, seconds, json.dumps(full))
        if answer is None:
            return None
        job_id, tries, host, key = answer
        return WebhookClaim(job_id.decode(), token, int(tries), host.decode(), key.decode())

    def settle(
        self, claim: WebhookClaim, state: WebhookState, reason: str = "", pause_s: float = 0.0
    ) -> bool:
        return bool(self._run("settle", claim.job_id, claim.token, state, reason, pause_s))

    def _run(self, operation: str, *args: str | float) -> Any:
        clock = "" if self._clock is None else f"{self._clock():.6f}"
        with translating_redis_errors():
            return self._script(args=[operation, clock, *args])
