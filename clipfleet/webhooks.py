"""Receives webhooks of a clipfleet service: `verify_webhook` checks that a request is one."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipfleet.common.http import webhooks
from clipfleet.errors import WebhookError
from clipfleet.results import Job


class WebhookEvent(BaseModel):
    """What a webhook says."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The same when the service sends a webhook again.")
    type: str = Field(description="job.succeeded, job.partial, job.failed or job.cancelled.")
    timestamp: datetime = Field(description="When the job ended.")
    job: Job = Field(description="The job as it ended.")


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, Any],
    secret: str | Sequence[str],
    *,
    tolerance_s: float = webhooks.TOLERANCE_S,
) -> WebhookEvent:
    """Check that a request is a webhook of a clipfleet service, and return what it says.

    The service may send a webhook more than once: keep `id`, and ignore one that you have seen.

    Args:
        body: the body of the request as it arrived, not parsed.
        headers: its headers, as a web framework has them.
        secret: the secret of the job or of the service, such as "whsec_...". Of several, one has to
            fit: while a secret is replaced, give both.
        tolerance_s: how old the request may be, seconds.

    Raises:
        WebhookError: the signature is wrong or missing, or the request is too old.
        ValueError: `secret` is not a webhook secret.

    Example:
        event = verify_webhook(request.body, request.headers, "whsec_...")
        print(event.job.id, event.job.state)
    """
    if not isinstance(body, bytes | str):
        raise TypeError("body= has to be the body as it arrived: bytes, or a text")
    raw = body.encode() if isinstance(body, str) else body
    try:
        secrets = [secret] if isinstance(secret, str) else secret
        message_id = webhooks.verify(secrets, _plain(headers), raw, tolerance_s=tolerance_s)
        return _Event.model_validate_json(raw).event(message_id)
    except webhooks.BadSignature as error:
        raise WebhookError(str(error)) from None
    except ValidationError as error:
        raise WebhookError("the webhook is not one of a clipfleet of this version") from error


class _Event(BaseModel):
    type: str
    timestamp: datetime
    data: Job

    def event(self, message_id: str) -> WebhookEvent:
        return WebhookEvent(id=message_id, type=self.type, timestamp=self.timestamp, job=self.data)


def _plain(headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers with names in small letters. Some frameworks have bytes."""
    return {_text(name).lower(): _text(value) for name, value in headers.items()}


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
