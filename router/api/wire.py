"""What clients send -> ImageRequest: JSON and multipart of the OpenAI Images API, checked before anything is spent.

The order of checks is fixed, so that one bad request has one answer: syntax, required fields and types, values,
pictures. Whether the model exists and can do it is the gateway's question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pybase64

from router import media
from router.api import fields
from router.api.forms import Part
from router.blob import Blob
from router.errors import RequestError
from router.types import ImageRequest, InputImage, Operation, Warn

MAX_IMAGES = 16
_MAX_URL_TEXT = 20 * 1024 * 1024
_IMAGE_FIELD = re.compile(r"image(?:\[[0-9]*\])?")
_BRACKETS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){1,5})")
_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*?)(;base64)?,", re.IGNORECASE)

Headers = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Draft:
    """A request whose pictures are still outside: URLs, data URLs, or the bytes of a form's parts."""

    request: ImageRequest
    images: tuple[str | Blob, ...]
    mask: str | Blob | None
    markup: Blob | None  # forms only
    param: str  # what the client calls its pictures: image in a form, images in JSON


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; RequestError for anything else, NaN, bad UTF-8 and absurd nesting included."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RequestError(400, "The request body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise RequestError(400, "The request body must be a JSON object.")
    return value


def parse_generation(body: bytes, *, default_model: str | None = None, headers: Headers | None = None) -> ImageRequest:
    """A generations body. RequestError names the first thing wrong with it."""
    known, extra = fields.typed(json_object(body))
    return _request(Operation.GENERATE, known, extra, default_model, headers or {})


def parse_edit_json(body: bytes, *, default_model: str | None = None, headers: Headers | None = None) -> Draft:
    """A JSON edits body; its pictures are URLs and data URLs yet to be read."""
    values = json_object(body)
    images, mask = values.pop("images", None), values.pop("mask", None)
    known, extra = fields.typed(values)
    if images is None:
        _require_prompt(known)
        raise fields.missing("images")
    if not isinstance(images, list):
        raise fields.wrong_type("images", "an array", images)
    if not images:
        raise fields.wrong_value("images", "'images' must hold at least one image.")
    if len(images) > MAX_IMAGES:
        raise _too_many("images")
    sources = tuple(_source(image, "images") for image in images)
    mask_source = None if mask is None else _source(mask, "mask")
    request = _request(Operation.EDIT, known, extra, default_model, headers or {})
    return Draft(request, sources, mask_source, None, "images")


def parse_form(
    operation: Operation,
    parts: Sequence[Part],
    *,
    default_model: str | None = None,
    headers: Headers | None = None,
) -> Draft:
    """A multipart edits or variations body: images under any of their names, in order; text fields by their kind."""
    images: list[str | Blob] = []
    overlays: dict[str, Blob] = {}
    texts: dict[str, Any] = {}
    for part in parts:
        if _IMAGE_FIELD.fullmatch(part.name):
            images.append(part.data)
        elif (name := part.name.removesuffix("[]")) in ("mask", "markup"):
            if name in overlays:
                raise RequestError(400, f"Only one {name} can be given.", code="array_above_max_length", param=name)
            overlays[name] = part.data
        else:
            _collect(texts, part)
    known, extra = fields.typed_text(texts)
    if operation is Operation.EDIT:
        _require_prompt(known)
    if not images:
        raise fields.missing("image")
    if len(images) > (MAX_IMAGES if operation is Operation.EDIT else 1):
        raise _too_many("image")
    request = _request(operation, known, extra, default_model, headers or {})
    return Draft(request, tuple(images), overlays.get("mask"), overlays.get("markup"), "image")


def with_images(
    draft: Draft, images: Sequence[Blob], mask: Blob | None, *, forwards: Callable[[str], bool] = lambda model: False
) -> ImageRequest:
    """The request with its pictures checked: known format, whole, of sane size; what lies over the first one fits it.

    ``forwards`` tells of a model whether bytes that are no picture we know are passed on, measured as unknown, because
    its providers take more formats than we read.
    """
    warnings = list(draft.request.warnings)
    model = draft.request.model
    inputs = tuple(_input(data, draft.param, model, forwards, warnings) for data in images)
    first = inputs[0]
    painted = None if mask is None else _overlay(mask, "mask", first, model, forwards, warnings)
    markup = None if draft.markup is None else _overlay(draft.markup, "markup", first, model, forwards, warnings)
    if painted is not None and markup is not None and painted.format is not None:
        raise fields.wrong_value("markup", "'markup' cannot be combined with 'mask'.")
    return replace(draft.request, images=inputs, mask=painted, markup=markup, warnings=tuple(warnings))


def from_data_url(text: str, param: str) -> bytes | None:
    """The bytes of a base64 data URL, None if it is another kind of URL."""
    if text[:5].lower() != "data:":
        return None
    match = _DATA_URL.match(text[:512])
    if match is None or match[3] is None:
        raise _bad_image(param, "A data URL must carry base64: data:image/png;base64,...")
    try:
        return pybase64.b64decode(text[match.end() :], validate=True)
    except ValueError:
        raise _bad_image(param, "A data URL's base64 is broken.") from None


# --- one request ------------------------------------------------------------------------------------------------


def _request(
    operation: Operation, known: dict[str, Any], extra: dict[str, Any], default_model: str | None, headers: Headers
) -> ImageRequest:
    get, varies = known.get, operation is Operation.VARIATION
    if not varies:
        _require_prompt(known)
    models = fields.read_models(known, headers)
    model = get("model")
    if model is None:
        model, models = (models[0], models[1:]) if models else (default_model, models)
    if model is None:
        raise fields.missing("model")
    fields.check_values(known)
    prompt = get("prompt", "")
    if not prompt and not varies:
        raise fields.wrong_value("prompt", "'prompt' must not be empty.")
    if model == "":
        raise fields.wrong_value("model", "'model' must not be empty.")
    warnings: list[Warn] = []
    n = fields.read_n(known)
    size = fields.read_size(known, warnings)
    stream = not varies and get("stream", False)
    later = get("later", False) or _prefers_async(headers)
    if stream and get("later"):
        raise fields.wrong_value("background", "A request that runs in the background cannot be streamed.")
    for name in fields.PASSED_ON:
        if name in known:
            extra[name] = known[name]
    return ImageRequest(
        operation=operation,
        model=model,
        prompt=prompt,
        n=n,
        size=size,
        size_policy=fields.read_size_policy(known, headers, warnings),
        quality=get("quality"),
        background=get("background"),
        output_format=get("output_format"),
        output_compression=get("output_compression"),
        moderation=get("moderation"),
        style=get("style"),
        input_fidelity=get("input_fidelity"),
        seed=get("seed"),
        response_format="b64_json" if stream else get("response_format"),  # events carry base64 whatever is asked
        stream=stream,
        partial_images=get("partial_images", 0) if stream else 0,
        user=get("safety_identifier") or get("user"),
        extra=extra,
        models=models,
        deadline_s=fields.read_deadline(headers, waits=not (stream or later)),
        preferences=fields.read_preferences(get("provider"), headers),
        warnings=tuple(warnings),
        later=later,
        webhook_url=get("webhook_url"),
    )


def _prefers_async(headers: Headers) -> bool:
    prefer = headers.get(b"prefer")
    return prefer is not None and b"respond-async" in prefer.lower().replace(b" ", b"").split(b",")


def _require_prompt(known: Mapping[str, Any]) -> None:
    if "prompt" not in known:
        raise fields.missing("prompt")


# --- forms ------------------------------------------------------------------------------------------------------


def _collect(texts: dict[str, Any], part: Part) -> None:
    """Put a field in its place; ``a[b]`` and ``a[]`` are how clients flatten objects and arrays.

    A file under a name that means nothing here is the provider's, which takes it as a data URL.
    """
    match = _BRACKETS.fullmatch(part.name)
    keys = [match[1], *match[2][1:-1].split("][")] if match else [part.name]
    data = bytes(part.data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        if keys[0] in fields.KINDS:
            raise RequestError(400, f"The form field '{keys[0]}' is not UTF-8 text.", param=keys[0]) from None
        found = media.probe(data)
        kind = f"image/{found.format}" if found is not None else "application/octet-stream"
        text = f"data:{kind};base64,{pybase64.b64encode(data).decode()}"
    listed = len(keys) > 1 and (keys[-1] == "" or keys[-1].isdecimal())
    if listed:
        keys.pop()
    holder: dict[str, Any] = texts
    for key in keys[:-1]:
        inner = holder.get(key)
        if not isinstance(inner, dict):
            inner = holder[key] = {}
        holder = inner
    name = keys[-1]
    if holder is texts and name in texts and name in fields.KINDS:
        raise fields.wrong_value(name, f"'{name}' is given more than once.")
    if listed or name in holder:
        holder[name] = [*_as_list(holder.get(name, [])), text]
    else:
        holder[name] = text


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- pictures ---------------------------------------------------------------------------------------------------


def _source(item: Any, param: str) -> str:
    if not isinstance(item, dict):
        raise fields.wrong_type(param, "an object with 'image_url'", item)
    url, file_id = item.get("image_url"), item.get("file_id")
    if (url is None) == (file_id is None):
        raise fields.wrong_value(param, f"Each item of '{param}' needs exactly one of 'image_url' and 'file_id'.")
    if file_id is not None:
        raise RequestError(
            400, "There is no Files API here; send 'image_url'.", code="unsupported_parameter", param=param
        )
    if not isinstance(url, str):
        raise fields.wrong_type(param, "a string in 'image_url'", url)
    if len(url) > _MAX_URL_TEXT:
        raise RequestError(400, "An 'image_url' is too long.", code="string_above_max_length", param=param)
    if not url[:8].lower().startswith(("http://", "https://", "data:")):
        raise fields.wrong_value(param, "An 'image_url' must be an http(s) or data URL.")
    return url


def _input(data: Blob, param: str, model: str, forwards: Callable[[str], bool], warnings: list[Warn]) -> InputImage:
    try:
        found = media.check(data)
    except media.BadImage as error:
        if error.kind != "too_large" and forwards(model):
            warnings.append(Warn("input_undecodable", "An input that is no known picture was passed on.", param))
            return InputImage(data, None, None)
        raise _bad_image(
            param, str(error), "unsupported_file_mimetype" if error.kind == "unknown" else "invalid_image_file"
        ) from None
    return InputImage(data, found.format, found.size)


def _overlay(
    data: Blob, name: str, first: InputImage, model: str, forwards: Callable[[str], bool], warnings: list[Warn]
) -> InputImage:
    """A mask or a markup: it lies over the first image. What is passed on unread is the provider's to judge."""
    overlay = _input(data, name, model, forwards, warnings)
    if overlay.format is None:
        return overlay
    if overlay.format != "png" or not media.has_alpha(bytes(data)):
        rule = "fully transparent pixels are edited" if name == "mask" else "the image shows where it is transparent"
        raise _bad_image(name, f"The {name} must be a PNG with an alpha channel; {rule}.")
    if first.size is not None and overlay.size != first.size:
        raise _bad_image(name, f"The {name} is {overlay.size}, but the first image is {first.size}.")
    return overlay


def _bad_image(param: str, message: str, code: str = "invalid_image_file") -> RequestError:
    return RequestError(400, message, code=code, param=param)


def _too_many(param: str) -> RequestError:
    return RequestError(
        400, f"Too many images: at most {MAX_IMAGES} can be sent.", code="array_above_max_length", param=param
    )
