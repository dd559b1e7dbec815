"""The OpenAI Images API as an upstream: OpenAI itself, and every host that speaks it.

Which fields a host is sent follows from what its target declares: ``quality`` if it has ``qualities``,
``output_format`` if it has more than one format, ``background`` if it is ``transparent``, ``response_format`` if its
options say so. So a plain LocalAI or vLLM host gets model, prompt, n and size.

Facts: openai-python 3.52.0 and openai-openapi (2026-08-21), OpenAI image generation guide, Azure OpenAI how-to,
xAI and DeepInfra image documentation, all read 2026-11-20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import httpx

from pricing import Reported
from router.blob import Blob
from router.errors import Billed, ErrorKind, ProviderError
from router.providers import answers, bodies, events, sizes
from router.providers.base import Call, Flow, Hosted, Partial, Read
from router.types import ImageRequest, ImageResult, Operation, Target, Warn

_GPT_IMAGE = ("gpt-image", "chatgpt-image")
_TAKES_FIDELITY = re.compile(r"gpt-image-1(?:\.5|-mini)")  # openai-python 3.52.0: to be left out for gpt-image-2

_RESERVED = frozenset(
    {"model", "prompt", "n", "size", "image", "image[]", "images", "mask", "markup", "stream", "partial_images"}
    | {"response_format", "output_format", "quality", "background", "moderation", "user", "frame_count"}
)

_RATIOS = ("1:1", "3:4", "4:3", "9:16", "16:9", "2:3", "3:2", "1:2", "2:1")  # xAI; its phone ratios have fractions

# The codes decide (OpenAI and Azure error tables, 2026-11-20; Ark's from its ModelArk image API). Status is next.
_REFUSALS = frozenset(
    {"moderation_blocked", "content_policy_violation", "content_filter", "contentFilter"}
    | {"ResponsibleAIPolicyViolation", "OutputImageSensitiveContentDetected", "InputTextSensitiveContentDetected"}
    | {"InputImageSensitiveContentDetected"}
)
_ACCOUNT = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_limit_user_error", "billing_not_active"}
    | {"invalid_api_key", "model_not_found", "DeploymentNotFound", "AccountOverdueError", "AuthenticationError"}
)


class OpenAI(Hosted):
    """Settings: ``size_as`` size (default), width_height, aspect_ratio or none; ``edit_as`` multipart (default) or
    json (xAI: pictures as objects); ``image_part`` the name of each part when there are several pictures; ``omit``
    fields that the host rejects, a list; ``api_version`` Azure's classic form: the URL is the resource's, the endpoint
    a deployment, which stands in the path with this version behind it, and not in the body.
    """

    urls: ClassVar[Mapping[str, str]] = {"api": "https://api.openai.com/v1"}
    settings: ClassVar[frozenset[str]] = bodies.COMMON_SETTINGS | {
        "size_as",
        "edit_as",
        "image_part",
        "omit",
        "api_version",
    }

    def run(self, request: ImageRequest, target: Target) -> Flow:
        warnings: list[Warn] = []
        if request.operation is Operation.GENERATE:
            fields = self._fields(request, target, warnings)
            call = bodies.post(self._url(request, target, "generations"), bodies.dump(fields))
        else:
            call = self._edit(request, target, warnings)
        if _wants_partials(request, target):
            response = yield Call(call, billable=True, stream=True)
            return (yield from _streamed(response, request, warnings))
        response = yield Call(call, billable=True)
        return _result(response, request, warnings)

    def _url(self, request: ImageRequest, target: Target, call: str) -> httpx.URL:
        version = target.options.get("api_version")
        if version is None:
            return bodies.endpoint(f"{self.base['api']}/images/{call}")
        deployment = quote(bodies.model_id(request, target), safe="")
        query = urlencode({"api-version": version})
        return bodies.endpoint(f"{self.base['api']}/openai/deployments/{deployment}/images/{call}?{query}")

    def _fields(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> dict[str, Any]:
        model = bodies.model_id(request, target)
        fields = bodies.offered(request, target, self.settings, _RESERVED, warnings)
        if "api_version" not in target.options:
            fields["model"] = model
        fields |= {"prompt": request.prompt, "n": request.n}
        size = sizes.wanted(request, target)
        size_as = target.options.get("size_as", "size")
        sizes.put(fields, size, size_as, warnings, _RATIOS)
        if size is not None and size_as == "aspect_ratio":
            fields.setdefault("resolution", "1k" if max(size.width, size.height) <= 1536 else "2k")
        quality = bodies.quality(request, target, warnings)
        if quality is not None:
            fields["quality"] = quality
        honoured = ["quality", "background"] if target.transparent else ["quality"]
        if target.transparent and request.background is not None:
            fields["background"] = request.background
        if len(target.formats) > 1 and request.output_format is not None:
            fields["output_format"] = bodies.picture_format(request, target)
            if fields["output_format"] in ("jpeg", "webp"):
                honoured.append("output_compression")
                if request.output_compression is not None:
                    fields["output_compression"] = request.output_compression
        if request.user is not None:
            fields["user"] = request.user
        known_as = target.sku or model  # a deployment at Azure has a name of its own
        gpt = known_as.startswith(_GPT_IMAGE)
        if gpt:
            fields.pop("response_format", None)  # always base64; the option is refused
            honoured.append("moderation")
            if request.moderation is not None and request.operation is Operation.GENERATE:
                fields["moderation"] = request.moderation
        elif request.style is not None:
            honoured.append("style")
            fields["style"] = request.style
        if request.operation is not Operation.GENERATE and _TAKES_FIDELITY.match(known_as):
            honoured.append("input_fidelity")
            if request.input_fidelity is not None:
                fields["input_fidelity"] = request.input_fidelity
        if request.seed is not None and not gpt:
            honoured.append("seed")
            fields["seed"] = request.seed  # no field of OpenAI's, but LocalAI, vLLM and Ark have it; xAI rejects it
        if _wants_partials(request, target):
            fields |= {"stream": True, "partial_images": request.partial_images}
        for name in target.options.get("omit", ()):
            if fields.pop(name, None) is not None and name in honoured:
                honoured.remove(name)
        bodies.warn_unsupported(request, warnings, *honoured)
        return fields

    def _edit(self, request: ImageRequest, target: Target, warnings: list[Warn]) -> httpx.Request:
        url = self._url(request, target, "edits")
        fields = self._fields(request, target, warnings)
        as_json = target.options.get("edit_as") == "json"  # no host of that kind takes a markup
        images = bodies.inputs(request, target.max_inputs, markup=target.markup and not as_json)
        if not target.mask:
            bodies.refuse_mask(request)
        if as_json:
            body = bodies.JsonBody()
            objects = [{"type": "image_url", "url": body.data_uri(image)} for image in images]
            fields |= {"image": objects[0]} if len(objects) == 1 else {"images": objects}
            if request.mask is not None:
                fields["mask"] = {"type": "image_url", "url": body.data_uri(request.mask)}
            return bodies.post(url, body.dump(fields))
        form = bodies.Multipart()
        for name, value in fields.items():
            form.text(name, value)
        part = "image" if len(images) == 1 else str(target.options.get("image_part", "image[]"))
        for image in images:
            form.file(part, image)
        if request.mask is not None:
            form.file("mask", request.mask, "mask")
        if request.markup is not None:
            form.file("markup", request.markup, "markup")
        return bodies.post(url, form.dump(), form.headers)


def _wants_partials(request: ImageRequest, target: Target) -> bool:
    """Without partial pictures, or with several finals whose usage could not be told apart, one plain answer serves."""
    return request.stream and target.streams and request.partial_images > 0 and request.n == 1


# --- the answer -------------------------------------------------------------------------------------------------------


def _result(response: httpx.Response, request: ImageRequest, warnings: list[Warn]) -> ImageResult:
    if not response.is_success:
        raise _failure(response)
    answer, pictures = answers.parse_lifted(response, b"b64_json")
    return _read(response, answer, answers.items(answer.get("data")), pictures, request, warnings)


def _read(
    response: httpx.Response,
    answer: Mapping[str, Any],
    data: list[Any],
    pictures: list[Blob],
    request: ImageRequest,
    warnings: list[Warn],
) -> ImageResult:
    format = answers.media_format(answer.get("output_format"))
    common_size = answers.size_text(answer.get("size"))
    images = []
    withheld = 0
    for entry in data:
        item = answers.mapping(entry)
        if item.get("respect_moderation") is False or _code(item) in _REFUSALS:  # xAI; Ark
            withheld += 1
            continue
        size = answers.size_text(item.get("size")) or common_size
        kind = answers.media_format(item.get("mime_type")) or format
        image = answers.inlined(
            answers.lifted(item.get("b64_json"), pictures),
            size=size,
            format=kind,
            revised_prompt=answers.text(item.get("revised_prompt")),
        ) or answers.linked(item.get("url"), size=size, format=kind)
        if image is not None:
            images.append(image)
    usage = answers.mapping(answer.get("usage"))
    result = ImageResult(
        images=tuple(images),
        tokens=_tokens(usage),
        usage=usage if _complete(usage) else None,
        reported=_reported(answer, usage),
        quality=answers.text(answer.get("quality")),
        background=answers.text(answer.get("background")),
        seed=answers.integer(answer.get("seed")),
        provider_request_id=answers.request_id(response),
        warnings=tuple(warnings),
    )
    return answers.delivered(response, result, withheld, request)


def _tokens(usage: Mapping[str, Any]) -> dict[str, int]:
    """Tokens by the kinds of pricing.Usage; counts without details are text in and image out."""
    if not usage:
        return {}
    inputs = answers.mapping(usage.get("input_tokens_details"))
    outputs = answers.mapping(usage.get("output_tokens_details"))
    text_in = answers.count(inputs.get("text_tokens") if inputs else usage.get("input_tokens"))
    image_out = answers.count(outputs.get("image_tokens") if outputs else usage.get("output_tokens"))
    counts = {
        "text_input": text_in,
        "image_input": answers.count(inputs.get("image_tokens")),
        "image_output": image_out,
        "text_output": answers.count(outputs.get("text_tokens")),
    }
    return {kind: number for kind, number in counts.items() if number}


def _complete(usage: Mapping[str, Any]) -> bool:
    """Whether this is OpenAI's whole usage object, which a client's SDK can read."""
    return isinstance(usage.get("input_tokens_details"), dict) and all(
        answers.integer(usage.get(name)) is not None for name in ("input_tokens", "output_tokens", "total_tokens")
    )


def _reported(answer: Mapping[str, Any], usage: Mapping[str, Any]) -> Reported | None:
    """xAI counts its charge in ticks of 1e-10 USD; Recraft in credits of 0.001 USD."""
    for value, unit in ((usage.get("cost_in_usd_ticks"), "tick"), (answer.get("credits"), "credit")):
        number = answers.amount(value)
        if number is not None:
            return Reported(number, unit)
    return None


# --- streams ----------------------------------------------------------------------------------------------------------


def _streamed(response: httpx.Response, request: ImageRequest, warnings: list[Warn]) -> Flow:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        return _result((yield from events.read_all(response)), request, warnings)
    if not response.is_success:
        raise _failure((yield from events.read_all(response)))
    reader = events.EventReader()
    while chunk := (yield Read()):
        for name, data in reader.feed(chunk):
            if data == b"[DONE]":
                continue
            event, pictures = answers.parse_lifted(response, b"b64_json", data)
            kind = answers.text(event.get("type")) or name
            if kind == "error" or isinstance(event.get("error"), dict):
                raise _stream_failure(response, event)
            if kind.endswith(".partial_image"):
                image = answers.inlined(
                    answers.lifted(event.get("b64_json"), pictures),
                    size=answers.size_text(event.get("size")),
                    format=answers.media_format(event.get("output_format")),
                )
                if image is not None:
                    yield Partial(image, answers.count(event.get("partial_image_index")))
            elif kind.endswith(".completed"):
                return _read(response, event, [event], pictures, request, warnings)
    raise answers.failure(response, ErrorKind.NO_ANSWER, billed=Billed.MAYBE)


def _stream_failure(response: httpx.Response, event: Mapping[str, Any]) -> ProviderError:
    """An error after a stream began; there is no status, so the code or type decides alone."""
    error = answers.mapping(event.get("error")) or event
    code = _code({"error": error})
    kind = ErrorKind.SERVER_ERROR
    if code in _REFUSALS:
        kind = ErrorKind.REFUSED
    elif code in _ACCOUNT or answers.text(error.get("type")) in _ACCOUNT:
        kind = ErrorKind.AUTH
    elif code == "rate_limit_exceeded":
        kind = ErrorKind.RATE_LIMITED
    elif error.get("type") == "invalid_request_error":
        kind = ErrorKind.BAD_REQUEST
    billed = Billed.NO if kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.BAD_REQUEST) else None
    return answers.failure(response, kind, message=error.get("message"), code=code, billed=billed)


# --- failures ---------------------------------------------------------------------------------------------------------


def _code(body: Mapping[str, Any]) -> str | None:
    """The most telling code of an error object: Azure hides the filter's in an inner error."""
    error = body.get("error")
    if not isinstance(error, dict):
        return answers.text(body.get("code"))
    for name in ("inner_error", "innererror"):
        inner = answers.text(answers.mapping(error.get(name)).get("code"))
        if inner in _REFUSALS:
            return inner
    return answers.text(error.get("code")) or answers.text(error.get("type")) or answers.text(body.get("code"))


def _failure(response: httpx.Response) -> ProviderError:
    """Three shapes occur: OpenAI's object; xAI's ``{"code", "error": text}``; ``{"detail" or "message": text}``."""
    body = answers.mapping(answers.error_body(response))
    error = answers.mapping(body.get("error"))
    code = _code(body)
    kind = answers.kind_of(response)
    if code in _REFUSALS or (code is not None and "content moderation" in code.lower()):  # xAI's codes are sentences
        kind = ErrorKind.REFUSED
    elif code in _ACCOUNT or answers.text(error.get("type")) in _ACCOUNT:
        kind = ErrorKind.AUTH
    message = next(
        (
            words
            for words in (error.get("message"), body.get("error"), body.get("message"), body.get("detail"))
            if isinstance(words, str)
        ),
        None,
    )
    before_work = kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED, ErrorKind.BAD_REQUEST)
    return answers.failure(
        response,
        kind,
        message=message,
        code=code,
        param=answers.identifier(error.get("param")),
        billed=Billed.NO if before_work else None,  # refusals and 5xx: not documented, so the billing facts decide
    )
