"""Replicate: a prediction is created, held open for a few seconds, then polled.

Facts: replicate-python 1.0.7, Replicate's OpenAPI file, documentation of predictions, billing and deadlines
(changelog 2025-10-16); read 2026-11-20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import httpx

from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, polling, sizes
from router.providers.base import Call, Flow, Hosted, Job
from router.types import ImageRequest, ImageResult, Target, Warn

WAIT_S = 5
"""How long a create call is held open: a fast model answers in one exchange, and of a slow one the id is known, and
durable, soon."""

GRACE_S = 5
"""How much longer than the attempt a prediction may run before Replicate stops it, so that one whose router died stops
costing; while it lives, it says so itself."""

_RESERVED = frozenset(
    {"prompt", "num_outputs", "width", "height", "seed", "output_format", "output_quality", "image", "mask"}
    | {"input_images", "image_input", "input_image"}
)


class Replicate(Hosted):
    """The endpoint is ``owner/name`` (official models), ``owner/name:version`` or a version's hash.

    Settings: ``size_as`` aspect_ratio (default), width_height (with ``aspect_ratio: custom``) or none; ``images_as``
    the model's input for source pictures (a list, unless it names one of the single inputs); ``count_as`` its input for
    n, left out if it makes one; ``jpeg_as`` its word for JPEG; ``wait`` seconds to hold the create call, 0 for none;
    ``cancel_after`` instead of the attempt's own time (30s, 1m30s).
    """

    urls: ClassVar[Mapping[str, str]] = {"api": "https://api.replicate.com/v1"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {
        "size_as",
        "images_as",
        "count_as",
        "jpeg_as",
        "wait",
        "cancel_after",
    }

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        deadline = None if "cancel_after" in target.options else _cancel_after
        response = yield Call(self._create(request, target, warnings), billable=True, deadline=deadline)
        if not response.is_success:
            raise _failure(response)
        prediction = answers.mapping(answers.parse_exact(response))
        job = self._ticket(response, prediction)
        yield job
        if answers.text(prediction.get("status")) in _FINAL:
            return _result(response, prediction, request, warnings)
        return (yield from self._await(job, request, warnings))

    def resume(self, job: Job, request: ImageRequest | None, target: Target) -> Flow:
        return (yield from self._await(job, request, []))

    def cancel(self, job: Job) -> Call | None:
        url = answers.link(job.state.get("cancel_url"))
        return Call(bodies.post(url, b"", bodies.ACCEPT_HEADERS)) if url else None

    def _create(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> httpx.Request:
        model = bodies.model_id(request, target)
        options = target.options
        fields = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        body = bodies.JsonBody()
        fields["prompt"] = request.prompt
        count_as = options.get("count_as")
        if count_as:
            fields[count_as] = request.n
        sizes.put(fields, sizes.wanted(request, target), options.get("size_as", "aspect_ratio"), warnings)
        if "width" in fields:
            fields["aspect_ratio"] = "custom"
        format = bodies.picture_format(request, target)
        fields["output_format"] = options.get("jpeg_as", "jpg") if format == "jpeg" else format
        if request.output_compression is not None and format != "png":
            fields["output_quality"] = request.output_compression
        if request.seed is not None:
            fields["seed"] = request.seed
        bodies.refuse_mask(request)
        images = [body.data_uri(image) for image in bodies.inputs(request, target.max_inputs)]
        if images:
            name = options.get("images_as", "input_images")
            fields[name] = images[0] if name in ("image", "input_image", "image_prompt") else images
        honoured = ("seed", "output_compression") if format != "png" else ("seed",)
        bodies.warn_unsupported(request, warnings, *honoured)
        outer: dict[str, Any] = {"input": fields}
        if "/" in model and ":" not in model:
            url = bodies.endpoint(f"{self.base['api']}/models/{model}/predictions")
        else:
            url = bodies.endpoint(f"{self.base['api']}/predictions")
            outer["version"] = model
        headers = [*bodies.JSON_HEADERS]
        if "cancel_after" in options:
            headers.append((b"cancel-after", str(options["cancel_after"]).encode()))
        wait_s = options.get("wait", WAIT_S)
        if wait_s:
            headers.append((b"prefer", b"wait=%d" % wait_s))
        return bodies.post(url, body.dump(outer), headers)

    def _ticket(self, response: httpx.Response, prediction: Mapping[str, Any]) -> Job:
        job_id = answers.identifier(prediction.get("id"))
        if job_id is None:
            raise answers.failure(response, ErrorKind.NO_ANSWER, billed=Billed.MAYBE)
        urls = answers.mapping(prediction.get("urls"))
        base = f"{self.base['api']}/predictions/{job_id}"
        get, cancel = answers.address(urls.get("get")), answers.address(urls.get("cancel"))
        return Job(job_id, {"get_url": get or base, "cancel_url": cancel or f"{base}/cancel"})

    def _await(self, job: Job, request: ImageRequest | None, warnings: list[Warn]) -> Flow:
        url = answers.link(job.state.get("get_url"))
        if url is None:
            raise polling.lost("The job's address is unknown.")
        question = bodies.get(url)
        waits = polling.Waits(0.5)
        while True:
            response = yield from polling.ask(question, waits)
            prediction = answers.mapping(answers.parse_exact(response))
            status = answers.text(prediction.get("status"))
            if status not in _RUNNING and status not in _FINAL:
                raise polling.lost("The provider reports a state that is not known.", response.status_code)
            if status in _FINAL:
                return _result(response, prediction, request, warnings)


def _cancel_after(seconds: float) -> tuple[bytes, bytes]:
    minutes, rest = divmod(math.ceil(seconds) + GRACE_S, 60)
    written = f"{minutes}m{rest}s" if minutes and rest else f"{minutes}m" if minutes else f"{rest}s"
    return b"cancel-after", written.encode()


_RUNNING = frozenset({"starting", "processing"})
_FINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})


def _result(
    response: httpx.Response, prediction: Mapping[str, Any], request: ImageRequest | None, warnings: list[Warn]
) -> ImageResult:
    output = prediction.get("output")
    pictures = (answers.linked(item) for item in (output if isinstance(output, list) else [output]))
    result = ImageResult(
        images=tuple(picture for picture in pictures if picture is not None),
        seconds=answers.amount(answers.mapping(prediction.get("metrics")).get("predict_time")),
        queue_s=_between(prediction.get("created_at"), prediction.get("started_at")),
        provider_request_id=answers.identifier(prediction.get("id")),
        warnings=tuple(warnings),
    )
    status = prediction.get("status")
    if status == "succeeded":
        if not result.images and prediction.get("data_removed") is True:
            raise answers.failure(response, ErrorKind.DOWNLOAD, billed=Billed.YES, evidence=result)
        return answers.delivered(response, result, 0, request)
    if status == "aborted":  # before it started: not charged
        raise answers.failure(response, ErrorKind.CANCELLED, code=status, billed=Billed.NO)
    if status == "canceled":  # charged for the time it ran
        raise answers.failure(response, ErrorKind.CANCELLED, code=status, billed=Billed.YES, evidence=result)
    error = answers.text(prediction.get("error"))
    refused = error is not None and ("E005" in error or "NSFW" in error)  # a failed prediction has no other code
    kind = ErrorKind.REFUSED if refused else ErrorKind.SERVER_ERROR
    raise answers.failure(response, kind, message=error, code=status, evidence=result)


def _between(start: object, end: object) -> float | None:
    """Seconds between two of Replicate's timestamps."""
    if not isinstance(start, str) or not isinstance(end, str):
        return None
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except (ValueError, TypeError):
        return None


def _failure(response: httpx.Response) -> ProviderError:
    """A problem document (RFC 9457); all of them come before a prediction exists, but for 5xx."""
    body = answers.mapping(answers.error_body(response))
    invalid = answers.items(body.get("invalid_fields"))
    field = answers.mapping(invalid[0]).get("field") if invalid else None
    kind = answers.kind_of(response)
    return answers.failure(
        response,
        kind,
        message=body.get("detail"),
        code=body.get("title"),
        param=answers.identifier(field.removeprefix("input.")) if isinstance(field, str) else None,
        billed=None if kind in (ErrorKind.SERVER_ERROR, ErrorKind.NO_ANSWER) else Billed.NO,
    )
