"""Runware: an array with one task in, an entry per picture out, each with its cost.

One task per call, so that one call is one ledger entry. The task's id is ours: UUIDs that Runware echoes.

Facts: runware-python 0.5.24 and runware.ai documentation (image inference, errors, getResponse), read 2026-11-20.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar
from uuid import uuid4

import httpx

from pricing import Reported
from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, polling, sizes
from router.providers.base import Call, Flow, Hosted, Job
from router.types import GeneratedImage, ImageRequest, ImageResult, Target, Warn

_RESERVED = frozenset(
    {"taskType", "taskUUID", "model", "positivePrompt", "numberResults", "width", "height", "outputType", "seed"}
    | {"outputFormat", "outputQuality", "includeCost", "deliveryMethod", "seedImage", "maskImage", "referenceImages"}
    | {"inputs", "uploadEndpoint"}
)

_FORMATS = {"jpeg": "JPG", "png": "PNG", "webp": "WEBP", "svg": "SVG"}

_REFUSALS = frozenset({"contentModerated", "providerContentModeration", "contentModeration"})
_ACCOUNT = frozenset({"invalidApiKey", "missingApiKey", "insufficientCredits"})

_PARAMS = {
    "positivePrompt": "prompt",
    "width": "size",
    "height": "size",
    "numberResults": "n",
    "outputFormat": "output_format",
    "referenceImages": "image",
    "seedImage": "image",
}


class Runware(Hosted):
    """Settings: ``call`` sync (default) or async, which survives a restart of ours; ``size_as`` width_height (default)
    or none; ``images_as`` referenceImages (default) or seedImage.
    """

    urls: ClassVar[Mapping[str, str]] = {"api": "https://api.runware.ai/v1"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {"call", "size_as", "images_as"}

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        task_id = str(uuid4())
        content = self._body(request, target, task_id, warnings)
        response = yield Call(bodies.post(bodies.endpoint(self.base["api"]), content), billable=True)
        if target.options.get("call") != "async":
            return _result(response, request, warnings)
        if not response.is_success or answers.items(answers.mapping(answers.parse_exact(response)).get("errors")):
            return _result(response, request, warnings)
        job = Job(task_id, {})
        yield job
        return (yield from self._await(job, request, warnings))

    def resume(self, job: Job, request: ImageRequest | None, target: Target) -> Flow:
        return (yield from self._await(job, request, []))

    def _body(self, request: ImageRequest, target: Target, task_id: str, warnings: list[Warn]) -> bytes | bodies.Pieces:
        options = target.options
        task = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        task |= {
            "taskType": "imageInference",
            "taskUUID": task_id,
            "model": bodies.model_id(request, target),
            "positivePrompt": request.prompt,
            "numberResults": request.n,
            "outputType": "URL",
            "includeCost": True,
        }
        sizes.put(task, sizes.wanted(request, target), options.get("size_as", "width_height"), warnings)
        format = bodies.picture_format(request, target)
        task["outputFormat"] = _FORMATS.get(format, format.upper())
        if request.output_compression is not None and format != "png":
            task["outputQuality"] = min(99, max(20, request.output_compression))
        if request.seed is not None:
            task["seed"] = request.seed
        if options.get("call") == "async":
            task["deliveryMethod"] = "async"
        body = bodies.JsonBody()
        bodies.refuse_mask(request)
        images = [body.data_uri(image) for image in bodies.inputs(request, target.max_inputs)]
        if images:
            name = options.get("images_as", "referenceImages")
            task[name] = images[0] if name == "seedImage" else images
        honoured = ("seed", "output_compression") if format != "png" else ("seed",)
        bodies.warn_unsupported(request, warnings, *honoured)
        return body.dump([task])

    def _await(self, job: Job, request: ImageRequest | None, warnings: list[Warn]) -> Flow:
        content = bodies.dump([{"taskType": "getResponse", "taskUUID": job.id}])
        question = bodies.post(bodies.endpoint(self.base["api"]), content)
        waits = polling.Waits(0.5)
        while True:
            response = yield from polling.ask(question, waits)
            answer = answers.mapping(answers.parse_exact(response))
            states = [answers.mapping(item).get("status") for item in answers.items(answer.get("data"))]
            if set(states) == {"error"} and not answers.items(answer.get("errors")):
                raise answers.failure(response, ErrorKind.SERVER_ERROR, code="error")
            if answers.items(answer.get("errors")) or (states and "processing" not in states):
                return _result(response, request, warnings, job.id)
            if not states:
                raise polling.lost("The provider does not know the job.", response.status_code)


def _result(
    response: httpx.Response, request: ImageRequest | None, warnings: list[Warn], task_id: str | None = None
) -> ImageResult:
    if not response.is_success:
        raise _failure(response, answers.mapping(answers.error_body(response)))
    answer = answers.mapping(answers.parse_exact(response))
    images: list[GeneratedImage] = []
    costs: list[Decimal] = []
    withheld = 0
    seed = None
    for entry in answers.items(answer.get("data")):
        item = answers.mapping(entry)
        cost = answers.amount(item.get("cost"))
        if cost is not None:
            costs.append(cost)
        if item.get("NSFWContent") is True:
            withheld += 1
            continue
        image = answers.linked(item.get("imageURL"))
        if image is not None:
            images.append(image)
            seed = seed if seed is not None else answers.integer(item.get("seed"))
        task_id = task_id or answers.identifier(item.get("taskUUID"))
    result = ImageResult(
        images=tuple(images),
        reported=Reported(sum(costs, Decimal(0)), "USD") if costs else None,
        seed=seed,
        provider_request_id=task_id,
        warnings=tuple(warnings),
    )
    if not images and not withheld and answers.items(answer.get("errors")):
        raise _failure(response, answer, result)
    return answers.delivered(response, result, withheld, request, withheld_billed=Billed.YES if costs else None)


def _failure(response: httpx.Response, body: Mapping[str, Any], evidence: ImageResult | None = None) -> ProviderError:
    """``errors`` can come with any status, 200 too; the code decides where it is known."""
    errors = answers.items(body.get("errors"))
    error = answers.mapping(errors[0]) if errors else {}
    code = answers.text(error.get("code"))
    kind = ErrorKind.SERVER_ERROR if response.is_success else answers.kind_of(response)
    if code in _REFUSALS:
        kind = ErrorKind.REFUSED
    elif code in _ACCOUNT:
        kind = ErrorKind.AUTH
    elif response.is_success and answers.text(error.get("parameter")):
        kind = ErrorKind.BAD_REQUEST
    before_work = kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.BAD_REQUEST)
    return answers.failure(
        response,
        kind,
        message=error.get("message"),
        code=code,
        param=answers.field_of([error.get("parameter")], _PARAMS),
        billed=Billed.NO if before_work else None,
        evidence=evidence if evidence and evidence.reported else None,
    )
