"""fal.ai: any image endpoint by its id, through the queue or as one synchronous run.

Facts: fal queue, errors, common-parameters and FAQ documentation, fal-client 1.0.3 and the endpoint schemas of
@fal-ai/client 1.10.1, all read 2026-11-20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

from pricing import Reported
from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, polling, sizes
from router.providers.base import Auth, Call, Flow, Hosted, Job
from router.types import GeneratedImage, ImageRequest, ImageResult, Target, Warn

_HEADERS = [*bodies.JSON_HEADERS, (b"x-fal-no-retry", b"1")]  # else fal runs a queued request up to ten times

_RESERVED = frozenset(
    {"prompt", "num_images", "max_images", "image_size", "output_format", "seed"}
    | {"image_url", "image_urls", "mask_url", "mask_image_url", "fal_webhook"}
)

_RATIOS = ("21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16")

# error types by meaning (fal errors page, 2026-11-20); the type decides before the status does
_REFUSALS = frozenset({"content_policy_violation", "no_media_generated"})
_INPUT_CHECKS = frozenset(
    {"value_error", "missing", "one_of", "greater_than", "greater_than_equal", "less_than", "less_than_equal"}
    | {"multiple_of", "sequence_too_short", "sequence_too_long", "bad_request"}
)
_INFRASTRUCTURE: Mapping[str, ErrorKind] = dict.fromkeys(
    (
        "request_timeout",
        "startup_timeout",
        "runner_scheduling_failure",
        "runner_connection_timeout",
        "runner_disconnected",
        "runner_connection_refused",
        "runner_connection_error",
        "runner_incomplete_response",
        "runner_server_error",
        "internal_error",
    ),
    ErrorKind.SERVER_ERROR,
) | {"client_disconnected": ErrorKind.CANCELLED, "client_cancelled": ErrorKind.CANCELLED}
_DOWNSTREAM = frozenset({"downstream_service_error", "downstream_service_unavailable"})
_RUNNING = frozenset({"IN_QUEUE", "IN_PROGRESS"})

_PARAMS = {
    "num_images": "n",
    "image_size": "size",
    "aspect_ratio": "size",
    "image_url": "image",
    "image_urls": "image",
    "mask_url": "mask",
    "mask_image_url": "mask",
}


class Fal(Hosted):
    """Settings: ``call`` queue (default) or sync; ``size_as`` image_size (default), image_size_text, aspect_ratio or
    none; ``images_as``, ``mask_as``, ``quality_as``, ``count_as``: the endpoint's names for those fields (``count_as``
    null: it makes one picture and has no such field).
    """

    auth: ClassVar[Auth] = Auth(prefix="Key ")
    urls: ClassVar[Mapping[str, str]] = {"run": "https://fal.run", "queue": "https://queue.fal.run"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {
        "call",
        "size_as",
        "images_as",
        "mask_as",
        "quality_as",
        "count_as",
    }

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        model = bodies.model_id(request, target)
        body = self._body(request, target, warnings)
        if target.options.get("call") == "sync":
            url = bodies.endpoint(f"{self.base['run']}/{model}")
            response = yield Call(bodies.post(url, body, _HEADERS), billable=True, deadline=_start_within)
            return _result(response, request, warnings)
        url = bodies.endpoint(f"{self.base['queue']}/{model}")
        response = yield Call(bodies.post(url, body, _HEADERS), billable=True, deadline=_start_within)
        job = self._ticket(response, model)
        yield job
        return (yield from self._await(job, request, warnings))

    def resume(self, job: Job, request: ImageRequest | None, target: Target) -> Flow:
        return (yield from self._await(job, request, []))

    def cancel(self, job: Job) -> Call | None:
        url = answers.link(job.state.get("cancel_url"))
        return Call(httpx.Request("PUT", url, headers=bodies.ACCEPT_HEADERS)) if url else None

    def _body(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> bytes | bodies.Pieces:
        options = target.options
        fields = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        body = bodies.JsonBody()
        fields["prompt"] = request.prompt
        count_as = options.get("count_as", "num_images")
        if count_as:
            fields[count_as] = request.n
        sizes.put(fields, sizes.wanted(request, target), options.get("size_as", "image_size"), warnings, _RATIOS)
        fields["output_format"] = bodies.picture_format(request, target)
        if request.seed is not None:
            fields["seed"] = request.seed
        if request.background is not None and target.transparent:
            fields["background"] = request.background
        quality = bodies.quality(request, target, warnings)
        if quality is not None:
            fields[options.get("quality_as", "quality")] = quality
        images = bodies.inputs(request, target.max_inputs)  # fal ignores the pictures beyond its limit in silence
        if images:
            name = options.get("images_as", "image_urls")
            uris = [body.data_uri(image) for image in images]
            fields[name] = uris if name.endswith("s") else uris[0]
        if target.mask and request.mask is not None:
            fields[options.get("mask_as", "mask_url")] = body.data_uri(request.mask)
        else:
            bodies.refuse_mask(request)
        honoured = ("seed", "quality", "background") if target.transparent else ("seed", "quality")
        bodies.warn_unsupported(request, warnings, *honoured)
        return body.dump(fields)

    def _ticket(self, response: httpx.Response, model: str) -> Job:
        if not response.is_success:
            raise _failure(response)
        ticket = answers.mapping(answers.parse(response))
        job_id = answers.identifier(ticket.get("request_id"))
        if job_id is None:
            raise answers.failure(response, ErrorKind.NO_ANSWER, billed=Billed.MAYBE)
        # The paths of a job drop all but owner and app of the endpoint id, so the ticket's own URLs are preferred.
        base = f"{self.base['queue']}/{_app(model)}/requests/{job_id}"
        state = {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}
        return Job(job_id, {name: answers.address(ticket.get(name)) or built for name, built in state.items()})

    def _await(self, job: Job, request: ImageRequest | None, warnings: list[Warn]) -> Flow:
        status_url, response_url = (answers.link(job.state.get(name)) for name in ("status_url", "response_url"))
        if status_url is None or response_url is None:
            raise polling.lost("The job's addresses are unknown.")
        question = bodies.get(status_url)
        waits = polling.Waits()
        while True:
            response = yield from polling.ask(question, waits)
            state = answers.mapping(answers.parse(response))
            status = answers.text(state.get("status"))
            if status == "COMPLETED":
                break
            if status not in _RUNNING:
                raise polling.lost(status=response.status_code)
        # COMPLETED includes failures. fal's own are told here; of the model's the result's status and body tell.
        code = answers.text(state.get("error_type"))
        if code is not None and code in _INFRASTRUCTURE:
            raise answers.failure(response, _INFRASTRUCTURE[code], code=code, billed=_infrastructure_bill(code))
        response = yield Call(bodies.get(response_url))
        return _result(response, request, warnings, job.id, answers.mapping(state.get("metrics")))


def _start_within(seconds: float) -> tuple[bytes, bytes]:
    """What has not been started by then is not, and costs nothing; fal's own client refuses a second and less."""
    return b"x-fal-request-timeout", b"%.1f" % max(seconds, 1.1)


def _app(model: str) -> str:
    """``fal-ai/flux-2`` of ``fal-ai/flux-2/turbo/edit``; two prefixes are kept before owner and app."""
    parts = model.split("/")
    return "/".join(parts[:3] if parts[0] in ("workflows", "comfy") else parts[:2])


def _infrastructure_bill(code: str) -> Billed | None:
    """fal's own failures are free; of cancelled work it is not documented."""
    return None if _INFRASTRUCTURE[code] is ErrorKind.CANCELLED else Billed.NO


def _result(
    response: httpx.Response,
    request: ImageRequest | None,
    warnings: list[Warn],
    job_id: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> ImageResult:
    if not response.is_success:
        raise _failure(response)
    answer = answers.mapping(answers.parse(response))
    flags = answers.items(answer.get("has_nsfw_concepts"))
    images: list[GeneratedImage] = []
    withheld = 0
    for position, item in enumerate(answers.items(answer.get("images"))):
        if position < len(flags) and flags[position] is True:  # blanked by the safety checker, and billed
            withheld += 1
            continue
        fields = answers.mapping(item)
        image = answers.linked(
            fields.get("url"),
            size=answers.size(fields.get("width"), fields.get("height")),
            format=answers.media_format(fields.get("content_type")),
        )
        if image is not None:
            images.append(image)
    result = ImageResult(
        images=tuple(images),
        reported=_reported(response),
        seconds=answers.amount(
            (metrics or {}).get("inference_time", answers.mapping(answer.get("timings")).get("inference"))
        ),
        seed=answers.integer(answer.get("seed")),
        provider_request_id=job_id or answers.request_id(response),
        warnings=tuple(warnings),
    )
    return answers.delivered(response, result, withheld, request, withheld_billed=Billed.YES)


def _reported(response: httpx.Response) -> Reported | None:
    """The billed quantity in the endpoint's catalogue unit; absent for endpoints billed by compute seconds."""
    units = answers.amount(response.headers.get("x-fal-billable-units"))
    return None if units is None else Reported(units, "unit")


def _failure(response: httpx.Response) -> ProviderError:
    body = answers.mapping(answers.error_body(response))
    detail = body.get("detail")
    first = answers.mapping(answers.items(detail)[0]) if answers.items(detail) else {}
    code = answers.text(first.get("type") or body.get("error_type") or response.headers.get("x-fal-error-type"))
    message = first.get("msg") or (detail if isinstance(detail, str) else None)
    kind, billed = _meaning(response, code)
    evidence = ImageResult(images=(), reported=_reported(response))
    return answers.failure(
        response,
        kind,
        message=message,
        code=code,
        param=answers.field_of(first.get("loc"), _PARAMS),
        billed=billed,
        evidence=evidence if evidence.reported else None,
    )


def _meaning(response: httpx.Response, code: str | None) -> tuple[ErrorKind, Billed | None]:
    """Kind and billing of an error. fal FAQ, 2026-11-20: 5xx is never billed; a 422 may be, if a runner worked."""
    status = response.status_code
    kind = answers.kind_of(response)
    if response.headers.get("x-fal-request-timeout-type") == "user":  # not started within the time that we gave
        return ErrorKind.NO_ANSWER, Billed.NO
    if code is not None and code in _INFRASTRUCTURE:
        return _INFRASTRUCTURE[code], _infrastructure_bill(code)
    if code in _REFUSALS:
        return ErrorKind.REFUSED, Billed.NO if status >= 500 else Billed.MAYBE
    if status >= 500:
        return kind, Billed.NO
    if code in _DOWNSTREAM:
        return ErrorKind.SERVER_ERROR, Billed.MAYBE
    if kind is ErrorKind.BAD_REQUEST:
        worked = status == 422 and code not in _INPUT_CHECKS
        return kind, Billed.MAYBE if worked else Billed.NO
    return kind, Billed.NO if kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED) else None
