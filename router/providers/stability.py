"""Stability AI (v2beta): one multipart call, one picture as base64 with its seed and finish reason.

Facts: platform.stability.ai API reference and its OpenAPI files (August 2026), read 2026-11-20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import httpx

from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, sizes
from router.providers.base import Call, Flow, Hosted
from router.types import ImageRequest, ImageResult, Target, Warn

_RESERVED = frozenset({"prompt", "output_format", "seed", "image", "mask", "mode"})

_RATIOS = ("21:9", "16:9", "3:2", "5:4", "1:1", "4:5", "2:3", "9:16", "9:21")

_LARGEST_SEED = 4_294_967_294


class Stability(Hosted):
    """The endpoint is a path below ``v2beta/stable-image``: ``generate/core``. With a source picture the call is
    image-to-image, which sd3 (whose options name its ``model``) and ultra have; ``strength`` is theirs.
    """

    urls: ClassVar[Mapping[str, str]] = {"api": "https://api.stability.ai"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        path = bodies.model_id(request, target)
        fields = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        fields["prompt"] = request.prompt
        fields["output_format"] = format = bodies.picture_format(request, target)
        if request.seed is not None:
            fields["seed"] = request.seed % (_LARGEST_SEED + 1)
        bodies.refuse_mask(request)
        images = bodies.inputs(request, min(1, target.max_inputs))
        if not images:
            sizes.put(fields, sizes.wanted(request, target), "aspect_ratio", warnings, _RATIOS)
        elif path.endswith("/sd3"):
            fields["mode"] = "image-to-image"
        bodies.warn_unsupported(request, warnings, "seed")
        form = bodies.Multipart()
        for name, value in fields.items():
            form.text(name, value)
        for image in images:
            form.file("image", image)
        url = bodies.endpoint(f"{self.base['api']}/v2beta/stable-image/{path}")
        response = yield Call(bodies.post(url, form.dump(), form.headers), billable=True)
        return _result(response, request, format, warnings)


def _result(response: httpx.Response, request: ImageRequest, format: str, warnings: list[Warn]) -> ImageResult:
    if not response.is_success:
        raise _failure(response)
    answer, pictures = answers.parse_lifted(response, b"image")
    image = answers.inlined(answers.lifted(answer.get("image"), pictures), format=format)
    result = ImageResult(
        images=(image,) if image else (),
        seed=answers.integer(answer.get("seed")),
        provider_request_id=answers.request_id(response),
        warnings=tuple(warnings),
    )
    filtered = answer.get("finish_reason") == "CONTENT_FILTERED"  # blurred; whether it is charged is not documented
    return answers.delivered(response, result, int(filtered), request)


def _failure(response: httpx.Response) -> ProviderError:
    """Failed calls are not charged. A 403 is a refusal or a missing permission: the name tells."""
    body = answers.mapping(answers.error_body(response))
    name = answers.text(body.get("name"))
    kind = ErrorKind.REFUSED if name == "content_moderation" else answers.kind_of(response)
    errors = [error for error in answers.items(body.get("errors")) if isinstance(error, str)]
    return answers.failure(
        response,
        kind,
        message="; ".join(errors),
        code=name,
        billed=None if kind is ErrorKind.NO_ANSWER else Billed.NO,
    )
