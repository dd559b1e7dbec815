"""The OpenAI Images API as its compatible hosts speak it: error object, fields of JSON and multipart bodies, events."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Emulator, Problem, Wrong
from router.sandbox.pictures import Size

Fields = dict[str, Any]


class OpenAIShape(Emulator):
    """The error object, the bodies and the events of OpenAI's Images API, for every host that speaks it."""

    @abstractmethod
    def routes(self, host: str) -> Sequence[BaseRoute]: ...

    def error(self, wrong: Wrong) -> Response:
        headers = {}
        match wrong.kind:
            case "unauthenticated":
                reply = (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.")
            case "no_credit":
                reply = (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota.")
            case "not_found":
                reply = (404, "invalid_request_error", "model_not_found", "The model does not exist.")
            case "rate_limited":
                reply = (429, "requests", "rate_limit_exceeded", "Rate limit reached. Please try again later.")
                if wrong.retry_after is not None:
                    headers["retry-after"] = f"{wrong.retry_after:g}"
            case "server_error":
                reply = (
                    wrong.status or 500,
                    "server_error",
                    "server_error",
                    "The server had an error. Please try again.",
                )
            case "refused":
                text = "Your request was rejected by the safety system. safety_violations=[sexual]."
                reply = (400, "image_generation_user_error", "moderation_blocked", text)
            case "too_large":
                reply = (413, "invalid_request_error", "request_too_large", "The request is too large.")
            case _:
                reply = (400, "invalid_request_error", "invalid_value", "The request is not valid.")
        number, type_, usual_code, text = reply
        error = {
            "message": wrong.message or text,
            "type": type_,
            "param": wrong.param,
            "code": wrong.code or usual_code,
        }
        return JSONResponse({"error": error}, wrong.status or number, headers=headers)

    def reject(self, message: str, param: str | None, code: str = "invalid_value") -> Problem:
        return Problem(self.problem("invalid", message, param=param, code=code))

    async def form(self, call: Call) -> tuple[Fields, list[bytes], dict[str, bytes]]:
        """A multipart edit: scalar fields as text, the pictures in order, what lies over the first (mask, markup)."""
        if not call.request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise self.reject("Expected multipart/form-data.", None, "unsupported_content_type")
        try:
            async with call.request.form(max_files=64, max_part_size=1 << 26) as form:
                fields: Fields = {}
                images: list[bytes] = []
                over: dict[str, bytes] = {}
                for name, value in form.multi_items():
                    if not isinstance(value, UploadFile):
                        fields[name] = value
                    elif name in ("mask", "markup"):
                        over[name] = await value.read()
                    elif name in ("image", "image[]"):
                        images.append(await value.read())
                lengths = {name: len(data) for name, data in over.items()}
                call.record["body"] = {**fields, "images": [len(image) for image in images], **lengths}
                return fields, images, over
        except MultiPartException as problem:
            raise self.reject(f"Could not parse the form: {problem.message}", None) from None

    def integer(self, fields: Fields, name: str, default: int, low: int, high: int) -> int:
        """A bounded integer; text counts where the body was a form."""
        value = fields.get(name)
        if value is None:
            return default
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.reject(f"Invalid type for '{name}': expected an integer.", name, "invalid_type")
        if not low <= value <= high:
            raise self.reject(f"Invalid '{name}': must be between {low} and {high}.", name, "integer_out_of_range")
        return value

    def word(self, fields: Fields, name: str, default: str, allowed: Sequence[str]) -> str:
        value = fields.get(name)
        if value is None:
            return default
        if value not in allowed:
            known = ", ".join(f"'{word}'" for word in allowed)
            raise self.reject(f"Invalid value: {value!r}. Supported values are: {known}.", name)
        return str(value)

    def prompt(self, fields: Fields) -> str:
        prompt = fields.get("prompt")
        if prompt is None:
            raise self.reject("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter")
        if not isinstance(prompt, str):
            raise self.reject("Invalid type for 'prompt': expected a string.", "prompt", "invalid_type")
        if not 0 < len(prompt) <= 32_000:
            raise self.reject("Invalid 'prompt': must have 1 to 32000 characters.", "prompt")
        return prompt

    def size(self, fields: Fields, default: Size) -> Size:
        """``WxH``; null and auto leave the choice to the model."""
        value = fields.get("size")
        if value is None or value == "auto":
            return default
        width, x, height = str(value).partition("x")
        if not (x and width.isdecimal() and height.isdecimal() and len(width) < 6 and len(height) < 6):
            raise self.reject(f"Invalid size {value!r}.", "size")
        return int(width), int(height)

    async def measured(self, images: Sequence[bytes], param: str = "image") -> list[Size]:
        sizes = []
        for image in images:
            size = await self.world.painter.measure(image)
            if size is None:
                raise self.reject("Invalid image file or mode for image.", param, "invalid_image_file")
            sizes.append(size)
        return sizes

    def refuse(self, call: Call) -> None:
        """Let a refusal happen, if one was asked for."""
        if call.fault("refused"):
            raise Problem(self.problem("refused"))


def sse(event: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
