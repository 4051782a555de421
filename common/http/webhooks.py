"""Signed webhooks after Standard Webhooks (https://www.standardwebhooks.com), version 1.0.0."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from clipfleet.common.http.request import Request

WebhookState = Literal["pending", "delivered", "failed"]

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64
TOLERANCE_S = 300.0
NO_SECRET = (
    f"a webhook secret is {PREFIX} and the base64 of 24 to 64 random bytes; make one with "
    f'`echo "{PREFIX}$(openssl rand -base64 32)"`'
)


class BadSignature(Exception):
    """The request is not a webhook that was signed with the secret a moment ago."""


def key_of(secret: str) -> bytes:
    """The bytes of a secret, with which webhooks are signed. The prefix may be missing.

    Raises:
        ValueError: it is not a secret. The text does not contain it.
    """
    text = secret.strip().removeprefix(PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(NO_SECRET) from None
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(NO_SECRET)
    return key


def require_secret(secret: str) -> str:
    """Return the secret; a pydantic error, which does not contain it, when it is not one."""
    try:
        key_of(secret)
    except ValueError as error:
        raise PydanticCustomError("webhook_secret", "{reason}", {"reason": str(error)}) from None
    return secret


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a webhook.

    Args:
        secret: the secret that sender and receiver share.
        message_id: the same for each try of one webhook.
        timestamp: when this try is made, unix seconds.
        body: the body of the request.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(key_of(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def verify(
    secrets: Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> str:
    """Check the signature of a webhook, and return its id.

    Args:
        secrets: the secrets of which the sender has one.
        headers: the headers of the request, with names in small letters.
        body: the body of the request, as it arrived.
        tolerance_s: how far the time of the try may be from now, seconds.
        now: unix seconds; None: the current time.

    Raises:
        BadSignature: the webhook is not authentic, or too old.
        ValueError: a secret is not one.
    """
    for name in (ID, TIMESTAMP, SIGNATURE):
        if not headers.get(name):
            raise BadSignature(f"the header {name} is missing")
    text = headers[TIMESTAMP]
    if not (text.isascii() and text.isdigit()):
        raise BadSignature(f"the header {TIMESTAMP} is not a number of seconds")
    timestamp = int(text)
    candidates = [text.encode("utf-8", "replace") for text in headers[SIGNATURE].split()]
    expected = [signature(secret, headers[ID], timestamp, body).encode() for secret in secrets]
    if not any(hmac.compare_digest(a, b) for a in expected for b in candidates):
        raise BadSignature("the signature is not that of this secret and this body")
    age_s = (time.time() if now is None else now) - timestamp
    if abs(age_s) > tolerance_s:
        when = "old" if age_s > 0 else "far in the future"
        raise BadSignature(f"the webhook is too {when}: {abs(age_s):.0f} s")
    return headers[ID]


class WebhookIn(Request):
    """Where a job reports its end."""

    model_config = ConfigDict(hide_input_in_errors=True)

    url: str = Field(
        min_length=1,
        max_length=2_048,
        description="Address (https or http) to which the end of the job is sent.",
    )
    secret: Annotated[str, AfterValidator(require_secret)] | None = Field(
        None,
        repr=False,
        description="Secret for the signature: `whsec_` and the base64 of 24 to 64 random bytes. "
        "It is never shown again. Absent: CLIPFLEET_WEBHOOK_SECRET of the service.",
        json_schema_extra={"writeOnly": True},
    )
