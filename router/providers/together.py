"""Together AI: one synchronous call; source pictures are fields of the same call. Nothing about money comes back.

Facts: together-python 3.1.1, togethercomputer/openapi (2026-04-28), docs.together.ai images and error codes; read
2026-11-20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, sizes
from router.providers.base import Call, Flow, Hosted
from router.types import ImageRequest, ImageResult, Target, Warn

_RESERVED = frozenset(
    {"model", "prompt", "n", "width", "height", "response_format", "output_format", "image_url", "reference_images"}
)


class Together(Hosted):
    """Settings: ``size_as`` width_height (default), aspect_ratio or none; ``images_as`` reference_images (default) or
    image_url (Kontext: one picture).
    """

    urls: ClassVar[Mapping[str, str]] = {"api": "https://api.together.xyz/v1"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {"size_as", "images_as"}

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        content = self._body(request, target, warnings)
        url = bodies.endpoint(self.base["api"] + "/images/generations")
        response = yield Call(bodies.post(url, content), billable=True)
        return _result(response, request, warnings)

    def _body(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> bytes | bodies.Pieces:
        options = target.options
        fields = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        fields |= {"model": bodies.model_id(request, target), "prompt": request.prompt, "n": request.n}
        sizes.put(fields, sizes.wanted(request, target), options.get("size_as", "width_height"), warnings)
        fields.setdefault("response_format", "base64")  # one exchange, and no link that dies within the hour
        fields["output_format"] = bodies.picture_format(request, target)
        if request.seed is not None:
            fields["seed"] = request.seed
        body = bodies.JsonBody()
        bodies.refuse_mask(request)
        images = [body.data_uri(image) for image in bodies.inputs(request, target.max_inputs)]
        if images:
            name = options.get("images_as", "reference_images")
            fields[name] = images[0] if name == "image_url" else images
        bodies.warn_unsupported(request, warnings, "seed")
        return body.dump(fields)


def _result(response: httpx.Response, request: ImageRequest, warnings: list[Warn]) -> ImageResult:
    if not response.is_success:
        raise _failure(response)
    answer, pictures = answers.parse_lifted(response, b"b64_json")
    images = []
    for entry in answers.items(answer.get("data")):
        item = answers.mapping(entry)
        image = answers.inlined(answers.lifted(item.get("b64_json"), pictures)) or answers.linked(item.get("url"))
        if image is not None:
            images.append(image)
    result = ImageResult(
        images=tuple(images),
        provider_request_id=answers.identifier(answer.get("id")) or answers.request_id(response),
        warnings=tuple(warnings),
    )
    return answers.delivered(response, result, 0, request)


def _failure(response: httpx.Response) -> ProviderError:
    body = answers.mapping(answers.error_body(response))
    error: Mapping[str, Any] = answers.mapping(body.get("error"))
    message = answers.text(error.get("message"))
    kind = answers.kind_of(response)
    if response.status_code == 422 and message is not None and "NSFW" in message:  # the code is not documented
        kind = ErrorKind.REFUSED
    if response.status_code == 403:  # here the prompt is too long, not the key wrong
        kind = ErrorKind.BAD_REQUEST
    before_work = kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.BAD_REQUEST)
    return answers.failure(
        response,
        kind,
        message=message,
        code=error.get("code") or error.get("type"),
        param=answers.identifier(error.get("param")),
        billed=Billed.NO if before_work else None,
    )
