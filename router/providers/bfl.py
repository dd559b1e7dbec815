"""Black Forest Labs: submit, then poll the address the submit answer names. One picture per job.

Facts: docs.bfl.ai quick start, integration guidelines, pricing and errors, help.bfl.ai; read 2026-11-20.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

import httpx

from pricing import Reported
from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, polling, sizes
from router.providers.base import Auth, Call, Flow, Hosted, Job
from router.types import ImageRequest, ImageResult, Target, Warn

_INPUTS = ("input_image", *(f"input_image_{position}" for position in range(2, 9)))

_RESERVED = frozenset({"prompt", "width", "height", "output_format", "seed", "image", "mask", "image_prompt", *_INPUTS})

_PENDING = frozenset({"Pending", "Queued", "Processing"})
_REFUSED = frozenset({"Request Moderated", "Content Moderated"})
_FINAL = _REFUSED | {"Ready", "Error", "Failed"}

_PARAMS = {"width": "size", "height": "size", "aspect_ratio": "size"} | dict.fromkeys(_INPUTS, "image")


class BFL(Hosted):
    """Settings: ``size_as`` width_height (default), aspect_ratio (Kontext, ultra) or none."""

    auth: ClassVar[Auth] = Auth(header="x-key", prefix="")
    urls: ClassVar[Mapping[str, str]] = {"api": "https://api.bfl.ai/v1", "regions": "https://*.bfl.ai"}
    # "regions" is never called by that name: it lets the transport send the key to the regional host of a job
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {"size_as"}

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        model = bodies.model_id(request, target)
        content = self._body(request, target, warnings)
        response = yield Call(bodies.post(bodies.endpoint(f"{self.base['api']}/{model}"), content), billable=True)
        job = self._ticket(response)
        yield job
        return (yield from self._await(job, request, warnings))

    def resume(self, job: Job, request: ImageRequest | None, target: Target) -> Flow:
        return (yield from self._await(job, request, []))

    def _body(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> bytes | bodies.Pieces:
        fields = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        body = bodies.JsonBody()
        fields["prompt"] = request.prompt
        sizes.put(fields, sizes.wanted(request, target), target.options.get("size_as", "width_height"), warnings)
        fields["output_format"] = bodies.picture_format(request, target)  # jpeg when left out
        if request.seed is not None:
            fields["seed"] = request.seed
        bodies.refuse_mask(request)
        images = bodies.inputs(request, min(target.max_inputs, len(_INPUTS)))
        for name, image in zip(_INPUTS, images, strict=False):
            fields[name] = body.base64(image)
        bodies.warn_unsupported(request, warnings, "seed")
        return body.dump(fields)

    def _ticket(self, response: httpx.Response) -> Job:
        if not response.is_success:
            raise _failure(response)
        ticket = answers.mapping(answers.parse_exact(response))
        job_id = answers.identifier(ticket.get("id"))
        if job_id is None:
            raise answers.failure(response, ErrorKind.NO_ANSWER, billed=Billed.MAYBE)
        # The job lives in one region: asked elsewhere it is "not found". So the address is used as it came.
        asked = answers.address(ticket.get("polling_url"))
        state = {"polling_url": asked or f"{self.base['api']}/get_result?id={job_id}"}
        cost = answers.amount(ticket.get("cost"))
        if cost is not None:
            state["credits"] = str(cost)  # the money is named once, here: kept for a flow that resumes the job
        return Job(job_id, state)

    def _await(self, job: Job, request: ImageRequest | None, warnings: list[Warn]) -> Flow:
        url = answers.link(job.state.get("polling_url"))
        if url is None:
            raise polling.lost("The job's address is unknown.")
        question = bodies.get(url)
        waits = polling.Waits()
        unknown = 0
        while True:
            response = yield from polling.ask(question, waits)
            answer = answers.mapping(answers.parse_exact(response))
            status = answers.text(answer.get("status"))
            if status == "Task not found":  # a job can be asked about before its region knows it
                unknown += 1
                if unknown < polling.PATIENCE:
                    continue
                raise polling.lost("The provider does not know the job.", response.status_code)
            if status not in _PENDING and status not in _FINAL:
                raise polling.lost("The provider reports a state that is not known.", response.status_code)
            if status in _FINAL:
                return _result(response, answer, status, job, request, warnings)


def _result(
    response: httpx.Response,
    answer: Mapping[str, Any],
    status: str | None,
    job: Job,
    request: ImageRequest | None,
    warnings: list[Warn],
) -> ImageResult:
    made = answers.mapping(answer.get("result"))
    image = answers.linked(made.get("sample")) if status == "Ready" else None
    credits = answers.amount(job.state.get("credits"))
    result = ImageResult(
        images=(image,) if image else (),
        reported=Reported(credits, "credit") if credits is not None else None,
        seconds=_duration(made),
        seed=answers.integer(made.get("seed")),
        provider_request_id=job.id,
        warnings=tuple(warnings),
    )
    if status == "Ready":
        return answers.delivered(response, result, 0, request)
    # Whether a refusal or failure costs the credits that submit named is not documented: the billing facts decide.
    kind = ErrorKind.REFUSED if status in _REFUSED else ErrorKind.SERVER_ERROR
    raise answers.failure(response, kind, message=_reasons(answer), code=status, evidence=result)


def _duration(made: Mapping[str, Any]) -> Decimal | None:
    stated = answers.amount(made.get("duration"))
    if stated is not None:
        return stated
    started, ended = answers.amount(made.get("start_time")), answers.amount(made.get("end_time"))
    return ended - started if started is not None and ended is not None and ended >= started else None


def _reasons(answer: Mapping[str, Any]) -> str | None:
    details = answers.mapping(answer.get("details"))
    words = [word for word in answers.items(details.get("Moderation Reasons")) if isinstance(word, str)]
    return f"The provider refused: {', '.join(words)}." if words else None


def _failure(response: httpx.Response) -> ProviderError:
    """Submit's errors. 402 is credit and 403 the key; both, and 429, come before any work."""
    detail = answers.mapping(answers.error_body(response)).get("detail")
    first = answers.mapping(answers.items(detail)[0]) if answers.items(detail) else {}
    kind = answers.kind_of(response)
    return answers.failure(
        response,
        kind,
        message=first.get("msg") or detail,
        code=first.get("type"),
        param=answers.field_of(first.get("loc"), _PARAMS),
        billed=None if kind in (ErrorKind.SERVER_ERROR, ErrorKind.NO_ANSWER) else Billed.NO,
    )
