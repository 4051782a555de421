"""Jobs with webhooks, for the tests of their sender and of its port."""

from clipfleet.common.ledger import JobRoom, Ledger, NewJob, Webhook
from support.ledgers import a_job

SECRET = "whsec_" + "c2VjcmV0" * 4
OTHER_SECRET = "whsec_" + "b3RoZXIh" * 4


def job_with_webhook(job_id: str, url: str) -> NewJob:
    return a_job(job_id).model_copy(update={"webhook": Webhook(url=url, secret=SECRET)})


def ended(ledger: Ledger, job_id: str, url: str, key: str = "") -> None:
    """A job with a webhook that has ended."""
    ledger.create(job_with_webhook(job_id, url), room=JobRoom(key=key))
    ledger.cancel(job_id)
