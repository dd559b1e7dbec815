"""Google Gemini image models: one generateContent call, one picture, tokens in the answer.

A size is a ratio and a tier here; what comes back is measured from the bytes.

Facts: google-genai 3.4.0 and ai.google.dev image generation, pricing and troubleshooting pages, read 2026-11-20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

from pricing import ImageSize
from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, sizes
from router.providers.base import Auth, Call, Flow, Hosted
from router.types import GeneratedImage, ImageRequest, ImageResult, Target, Warn

_AT_1K: Mapping[str, ImageSize] = {
    "1:1": ImageSize(1024, 1024),
    "2:3": ImageSize(832, 1248),
    "3:2": ImageSize(1248, 832),
    "3:4": ImageSize(864, 1184),
    "4:3": ImageSize(1184, 864),
    "4:5": ImageSize(896, 1152),
    "5:4": ImageSize(1152, 896),
    "9:16": ImageSize(768, 1344),
    "16:9": ImageSize(1344, 768),
    "21:9": ImageSize(1536, 672),
}
"""Pixels by ratio in the 1K tier; 2K doubles and 4K quadruples each side (ai.google.dev image generation)."""

_TIERS = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}

_GENERATION_FIELDS = {"temperature": "temperature", "top_p": "topP", "top_k": "topK"}

# finishReason and blockReason of a refusal (google-genai 3.4.0 types); anything else without a picture is a failure
_REFUSALS = frozenset(
    {"IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER", "NO_IMAGE", "SAFETY"}
    | {"PROHIBITED_CONTENT", "RECITATION", "OTHER", "BLOCKLIST", "SPII"}
)

_TOKENS = {
    ("promptTokensDetails", "TEXT"): "text_input",
    ("promptTokensDetails", "IMAGE"): "image_input",
    ("candidatesTokensDetails", "TEXT"): "text_output",
    ("candidatesTokensDetails", "IMAGE"): "image_output",
}


class Google(Hosted):
    """Settings: ``tiers`` the ``imageSize`` words the model has (default 1K alone, which is then not sent);
    ``safetySettings`` is sent as it stands.
    """

    auth: ClassVar[Auth] = Auth(header="x-goog-api-key", prefix="")
    urls: ClassVar[Mapping[str, str]] = {"api": "https://generativelanguage.googleapis.com/v1beta"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {"tiers"}

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        url = bodies.endpoint(f"{self.base['api']}/models/{bodies.model_id(request, target)}:generateContent")
        response = yield Call(bodies.post(url, self._body(request, target, warnings)), billable=True)
        return _result(response, request, warnings)

    def _body(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> bytes | bodies.Pieces:
        options = bodies.offered(request, target, self.settings, (), warnings)
        body = bodies.JsonBody()
        parts: list[dict[str, Any]] = [{"text": request.prompt}]
        bodies.refuse_mask(request)
        for image in bodies.inputs(request, target.max_inputs):
            parts.append({"inlineData": {"mimeType": image.media_type, "data": body.base64(image)}})
        config: dict[str, Any] = {"responseModalities": ["IMAGE"]}
        picture = _picture(request, target, options, warnings)
        if picture:
            config["imageConfig"] = picture
        if request.seed is not None:
            config["seed"] = request.seed
        fields: dict[str, Any] = {"contents": [{"role": "user", "parts": parts}], "generationConfig": config}
        for name, value in options.items():
            if name in _GENERATION_FIELDS:
                config[_GENERATION_FIELDS[name]] = value
            elif name == "safetySettings" and "safetySettings" not in request.extra:
                fields[name] = value
            elif name in request.extra:
                warnings.append(bodies.dropped(name))
        bodies.warn_unsupported(request, warnings, "seed")
        return body.dump(fields)


def _picture(request: ImageRequest, target: Target, options: dict[str, Any], warnings: list[Warn]) -> dict[str, str]:
    """``imageConfig``: ratio and tier from the client's own words, else from the size."""
    ratio, tier = options.pop("aspect_ratio", None), options.pop("resolution", None)
    tiers = tuple(word for word in target.options.get("tiers", ()) if word in _TIERS) or ("1K",)
    size = sizes.wanted(request, target)
    if size is not None and (ratio is None or tier is None):
        made = sizes.nearest_size(size, tuple(_scaled(shape, name) for shape in _AT_1K.values() for name in tiers))
        words = {_scaled(shape, name): (key, name) for key, shape in _AT_1K.items() for name in tiers}[made]
        if made != size and ratio is None and tier is None:
            warnings.append(sizes.approximated(size, str(made)))
        ratio, tier = ratio or words[0], tier or words[1]
    config = {"aspectRatio": str(ratio)} if ratio else {}
    if tier and str(tier).upper() in tiers and len(tiers) > 1:
        config["imageSize"] = str(tier).upper()
    elif tier and str(tier).upper() not in tiers:
        warnings.append(bodies.dropped("resolution"))
    return config


def _scaled(size: ImageSize, tier: str) -> ImageSize:
    scale = _TIERS[tier]
    return ImageSize(int(size.width * scale), int(size.height * scale))


def _result(response: httpx.Response, request: ImageRequest, warnings: list[Warn]) -> ImageResult:
    if not response.is_success:
        raise _failure(response)
    answer, pictures = answers.parse_lifted(response, b"data")
    images: list[GeneratedImage] = []
    reasons = [answers.mapping(answer.get("promptFeedback")).get("blockReason")]
    for entry in answers.items(answer.get("candidates")):
        candidate = answers.mapping(entry)
        reasons.append(candidate.get("finishReason"))
        for item in answers.items(answers.mapping(candidate.get("content")).get("parts")):
            part = answers.mapping(item)
            inline = answers.mapping(part.get("inlineData"))
            if not inline or part.get("thought") is True:  # a sketch on the way, not the picture
                continue
            data = answers.lifted(inline.get("data"), pictures)
            image = answers.inlined(data, format=answers.media_format(inline.get("mimeType")))
            if image is not None:
                images.append(image)
    result = ImageResult(
        images=tuple(images),
        tokens=_tokens(answers.mapping(answer.get("usageMetadata"))),
        provider_request_id=answers.identifier(answer.get("responseId")) or answers.request_id(response),
        warnings=tuple(warnings),
    )
    refusal = next((reason for reason in reasons if isinstance(reason, str) and reason in _REFUSALS), None)
    if not images and (refusal or reasons[0]):  # a refusal is a 200; whether it costs its tokens is not documented
        raise answers.failure(response, ErrorKind.REFUSED, code=refusal or reasons[0], evidence=result)
    return answers.delivered(response, result, 0, request)


def _tokens(usage: Mapping[str, Any]) -> dict[str, int]:
    """Tokens by the kinds of pricing.Usage. Thoughts are billed as text that came out."""
    counts: dict[str, int] = {}
    for part, total, kind in (
        ("promptTokensDetails", "promptTokenCount", "text_input"),
        ("candidatesTokensDetails", "candidatesTokenCount", "image_output"),
    ):
        details = answers.items(usage.get(part))
        for entry in details:
            detail = answers.mapping(entry)
            modality = detail.get("modality")
            known = _TOKENS.get((part, modality)) if isinstance(modality, str) else None
            counts[known or kind] = counts.get(known or kind, 0) + answers.count(detail.get("tokenCount"))
        if not details:
            counts[kind] = counts.get(kind, 0) + answers.count(usage.get(total))
    counts["text_output"] = counts.get("text_output", 0) + answers.count(usage.get("thoughtsTokenCount"))
    return {kind: number for kind, number in counts.items() if number}


_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s", re.ASCII)


def _failure(response: httpx.Response) -> ProviderError:
    """google.rpc.Status: its details hold the reason of a bad key (a 400 here) and the pause after a 429."""
    error = answers.mapping(answers.mapping(answers.error_body(response)).get("error"))
    code = answers.text(error.get("status"))
    kind = answers.kind_of(response)
    delay = None
    for entry in answers.items(error.get("details")):
        detail = answers.mapping(entry)
        if detail.get("reason") == "API_KEY_INVALID":
            kind, code = ErrorKind.AUTH, "API_KEY_INVALID"
        pause = detail.get("retryDelay")
        match = _DELAY.fullmatch(pause) if isinstance(pause, str) else None
        delay = float(match[1]) if match else delay
    if code == "FAILED_PRECONDITION":  # no billing account, or a region that is not served
        kind = ErrorKind.AUTH
    before_work = kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.BAD_REQUEST)
    failure = answers.failure(
        response, kind, message=error.get("message"), code=code, billed=Billed.NO if before_work else None
    )
    failure.retry_after_s = delay if failure.retry_after_s is None else failure.retry_after_s
    return failure
