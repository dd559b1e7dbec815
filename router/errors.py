"""Everything that can go wrong with a request, and the one table that says what follows from it.

Exception
  RequestError     the client can fix it, or must be told: carries status, type, code, param of the answer
  ProviderError    one attempt failed: carries an ErrorKind, and whether it may have been billed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.types import ImageResult

INVALID = "invalid_request_error"
SERVER = "server_error"


class RequestError(Exception):
    """An answer in OpenAI's error shape. ``message`` is written for end users: no hosts, no keys, no traces."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = INVALID,
        retry: bool = False,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type
        self.retry = retry  # whether sending it again can help: a blind re-send by a client's SDK may buy it twice
        self.retry_after_s = retry_after_s  # when, where that is known
        self.headers = dict(headers or {})
        self.details = dict(details or {})  # extra keys inside the error object

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.details}


class Billed(StrEnum):
    """Whether a failed attempt costs money. MAYBE is booked as a maybe, at the worst case, until evidence comes."""

    NO = "no"
    YES = "yes"
    MAYBE = "maybe"


class ErrorKind(StrEnum):
    """Why an attempt failed. The table below says what each means; adapters and transport choose from it."""

    NOT_SENT = "not_sent"  # DNS, connect, TLS, pool: provably never reached the provider
    AUTH = "auth"  # our credential, credit or quota at the provider: 401, 402, 403, insufficient_quota
    RATE_LIMITED = "rate_limited"
    BAD_REQUEST = "bad_request"  # the provider blames a parameter
    REFUSED = "refused"  # content policy; arrives as HTTP 200 at many providers
    SERVER_ERROR = "server_error"  # a complete 5xx
    NO_ANSWER = "no_answer"  # sent, then timeout, reset, truncated or unreadable answer
    UNUSABLE = "unusable"  # an answer that says success without a usable picture
    DOWNLOAD = "download_failed"  # the picture exists and is paid, fetching it failed
    CANCELLED = "cancelled"  # we or the client stopped it


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from one kind of failure."""

    failover: bool  # try the next target
    health: str  # how the selector counts it: failure, capacity, blocked, neutral
    outcome: str  # label of pixelroute_provider_attempts_total
    billed: Billed  # unless the adapter or the provider's billing facts know better
    status: int  # if it is the last word
    type: str
    code: str
    retry: bool  # whether a client may send it again, unless something may have been billed: then never


CONSEQUENCES: Mapping[ErrorKind, Consequence] = {
    ErrorKind.NOT_SENT: Consequence(
        True, "failure", "connect_error", Billed.NO, 502, SERVER, "all_providers_failed", True
    ),
    ErrorKind.AUTH: Consequence(True, "blocked", "auth_error", Billed.NO, 502, SERVER, "all_providers_failed", False),
    ErrorKind.RATE_LIMITED: Consequence(
        True, "capacity", "rate_limited", Billed.NO, 429, "requests", "rate_limit_exceeded", True
    ),
    ErrorKind.BAD_REQUEST: Consequence(
        False, "neutral", "invalid_request", Billed.NO, 400, INVALID, "invalid_value", False
    ),
    ErrorKind.REFUSED: Consequence(
        False, "neutral", "moderation", Billed.MAYBE, 400, "image_generation_user_error", "moderation_blocked", False
    ),
    ErrorKind.SERVER_ERROR: Consequence(
        True, "failure", "server_error", Billed.MAYBE, 502, SERVER, "all_providers_failed", False
    ),
    ErrorKind.NO_ANSWER: Consequence(True, "failure", "timeout", Billed.MAYBE, 504, SERVER, "timeout", False),
    ErrorKind.UNUSABLE: Consequence(
        True, "failure", "bad_response", Billed.YES, 502, SERVER, "all_providers_failed", False
    ),
    ErrorKind.DOWNLOAD: Consequence(
        False, "neutral", "bad_response", Billed.YES, 502, SERVER, "download_failed", False
    ),
    ErrorKind.CANCELLED: Consequence(False, "neutral", "cancelled", Billed.MAYBE, 503, SERVER, "cancelled", False),
}


class ProviderError(Exception):
    """One attempt failed. ``message`` may quote the provider's reason, never its host, key or a trace."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        status: int | None = None,
        billed: Billed | None = None,
        retry_after_s: float | None = None,
        code: str | None = None,
        param: str | None = None,
        provider_request_id: str | None = None,
        details: Mapping[str, Any] | None = None,
        evidence: ImageResult | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status  # the provider's HTTP status
        self.billed = billed  # None: not known from the answer; billing facts or the table decide
        self.retry_after_s = retry_after_s
        self.code = code  # the provider's own code or type
        self.param = param
        self.provider_request_id = provider_request_id
        self.details = dict(details or {})
        self.evidence = evidence  # what the provider said about its bill all the same: a result without pictures
        # What the transport saw of the attempt; None until it has passed through there.
        self.latency_s: float | None = None
        self.ttfb_s: float | None = None
        self.sent_billable: bool | None = None  # whether anything the provider may charge for has left

    @property
    def consequence(self) -> Consequence:
        return CONSEQUENCES[self.kind]
