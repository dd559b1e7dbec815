"""What every adapter must keep, whatever its provider: run over all of ADAPTERS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing import ImageSize
from router.errors import Billed, ErrorKind, ProviderError
from router.providers import ADAPTERS, load_adapter
from router.providers.base import Adapter, Call, Flow, Job, Partial, Read
from router.types import ImageRequest, ImageResult, Operation, Target
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

NAMES = sorted(ADAPTERS)

ENDPOINTS = {
    "bfl": "flux-2-pro",
    "fal": "fal-ai/flux-2/turbo",
    "google": "gemini-2.5-flash-image",
    "openai": "gpt-image-2",
    "replicate": "black-forest-labs/flux-schnell",
    "runware": "runware:101@1",
    "stability": "generate/sd3",
    "together": "black-forest-labs/FLUX.2-dev",
}
COUNTS = {  # where n stands in a call; the others make one picture per call
    "fal": "num_images",
    "openai": "n",
    "replicate": "num_outputs",
    "runware": "numberResults",
    "together": "n",
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {"replicate": {"count_as": "num_outputs"}}

SUCCESS = {  # the answers of one whole, successful flow
    "bfl": ("bfl/submit", "bfl/pending", "bfl/ready"),
    "fal": ("fal/submit", "fal/in_queue", "fal/completed", "fal/result"),
    "google": ("google/generated",),
    "openai": ("openai/generated",),
    "replicate": ("replicate/starting", "replicate/processing", "replicate/succeeded"),
    "runware": ("runware/generated",),
    "stability": ("stability/generated",),
    "together": ("together/base64",),
}


def adapter(name: str, urls: Mapping[str, str] | None = None) -> Adapter:
    return ADAPTERS[name](urls or {})


def where(name: str, **changes: Any) -> Target:
    values: dict[str, Any] = {
        "endpoints": dict.fromkeys(Operation, ENDPOINTS[name]),
        "options": OPTIONS.get(name, {}),
        "max_images": 4 if name in COUNTS else 1,
        "max_inputs": 1 if name == "stability" else 4,
    }
    return target(name, "m", **(values | changes))


def answers_of(name: str) -> list[httpx.Response]:
    return [documented(fixture) for fixture in SUCCESS[name]]


def first_call(name: str, request: ImageRequest, **changes: Any) -> Call:
    step = next(adapter(name).run(request, where(name, **changes)))
    assert isinstance(step, Call)
    return step


def test_every_adapter_is_covered_here():
    assert set(ENDPOINTS) == set(SUCCESS) == set(ADAPTERS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("request_", [image_request(), edit_request()], ids=["generate", "edit"])
def test_one_money_call_first_to_its_own_base(name, request_):
    played = play(adapter(name).run(request_, where(name)), *answers_of(name))
    first, *others = played.calls
    assert first.billable
    assert first.request.method == "POST"
    assert first.after_s == 0
    assert any(str(first.request.url).startswith(url) for url in ADAPTERS[name].urls.values())
    assert not any(call.billable for call in others)
    assert all(isinstance(step, Call | Job) for step in played.steps)
    assert played.result.images


@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_noted_before_the_second_call(name):
    played = play(adapter(name).run(image_request(), where(name)), *answers_of(name))
    if len(played.calls) > 1:
        assert [type(step) for step in played.steps[:3]] == [Call, Job, Call]
        state = dict(played.jobs[0].state)
        assert all(isinstance(value, str) for value in state.values())
        resumed = play(adapter(name).resume(Job(played.jobs[0].id, state), None, where(name)), *answers_of(name)[1:])
        assert resumed.result.images == played.result.images
        assert resumed.result.reported == played.result.reported
    else:
        assert not played.jobs


@pytest.mark.parametrize("name", NAMES)
def test_the_key_is_not_the_adapters(name):
    auth = ADAPTERS[name].auth
    for call in play(adapter(name).run(image_request(), where(name)), *answers_of(name)).calls:
        assert auth.header not in call.request.headers
        assert "authorization" not in call.request.headers
        assert call.request.headers["host"] == call.request.url.netloc.decode()


@pytest.mark.parametrize("name", NAMES)
def test_bodies_say_their_length(name):
    for request in (image_request(), edit_request()):
        sent = first_call(name, request).request
        assert int(sent.headers["content-length"]) == len(sent.read())
        assert sent.headers["content-type"].split(";")[0] in ("application/json", "multipart/form-data")


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_n_is_sent(name):
    body = orjson.loads(first_call(name, image_request(n=3)).request.read())
    body = body[0] if isinstance(body, list) else body
    assert body.get("input", body)[COUNTS[name]] == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_client_cannot_raise_the_count_or_choose_model_or_callback(name):
    extra = dict.fromkeys(
        ("n", "num_images", "num_outputs", "numberResults", "max_images", "model", "version", "webhook", "webhookURL",
         "webhook_url", "fal_webhook", "prompt", "positivePrompt", "image_urls", "input_image", "uploadEndpoint"),
        "https://evil.example/9",
    )  # fmt: skip
    steering = dict.fromkeys(getattr(ADAPTERS[name], "settings", ()), "sync")
    sent = first_call(name, image_request(extra=extra | steering)).request
    plain = first_call(name, image_request()).request
    assert str(sent.url) == str(plain.url)
    body, expected = sent.read(), plain.read()
    allowed = {"n", "num_images", "num_outputs", "numberResults", "max_images", "model", "version"}
    for word in ("webhook", "webhookURL", "webhook_url", "fal_webhook", "uploadEndpoint"):
        assert word.encode() not in body
    if sent.headers["content-type"] == "application/json":
        ours, theirs = orjson.loads(body), orjson.loads(expected)
        for name_ in allowed & set(_flat(theirs)):
            assert _flat(ours)[name_] == _flat(theirs)[name_]
        assert _flat(ours).get("prompt") == _flat(theirs).get("prompt")


def _flat(value: Any) -> dict[str, Any]:
    outer: dict[str, Any] = value[0] if isinstance(value, list) else value
    inner: dict[str, Any] = outer.get("input", outer)
    return inner


@pytest.mark.parametrize("name", NAMES)
def test_options_of_the_operator_go_out_and_settings_do_not(name):
    sent = first_call(name, image_request(), options={"parameters": {"x_thing": "their_thing"}},)  # fmt: skip
    assert b"parameters" not in sent.request.read()


@pytest.mark.parametrize("name", NAMES)
def test_dropped_options_are_warned_about(name):
    request = image_request(style="vivid", moderation="low", input_fidelity="high", extra={"webhook": "https://x"})
    result = play(adapter(name).run(request, where(name)), *answers_of(name)).result
    dropped = {warning.param for warning in result.warnings if warning.code == "parameter_dropped"}
    missing = {"moderation", "style", "input_fidelity", "webhook"} - dropped
    assert missing <= {"moderation"} if name == "openai" else not missing
    assert all(warning.message for warning in result.warnings)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_never_dropped_in_silence(name):
    with pytest.raises(ProviderError) as raised:
        next(adapter(name).run(edit_request(mask=PNG), where(name)))
    assert (raised.value.kind, raised.value.billed, raised.value.param) == (
        ErrorKind.BAD_REQUEST, Billed.NO, "mask",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_too_many_inputs_and_missing_operations_are_refused_before_any_call(name):
    for request, changes in (
        (edit_request(images=(PNG,) * 17), {}),
        (edit_request(), {"endpoints": {Operation.GENERATE: ENDPOINTS[name]}}),
    ):
        with pytest.raises(ProviderError) as raised:
            next(adapter(name).run(request, where(name, **changes)))
        assert (raised.value.kind, raised.value.billed) == (ErrorKind.BAD_REQUEST, Billed.NO)


@pytest.mark.parametrize("name", NAMES)
def test_base_urls_can_be_replaced(name):
    base = ADAPTERS[name].urls
    flow = adapter(name, dict.fromkeys(base, "http://127.0.0.1:9000/x/")).run(image_request(), where(name))
    step = next(flow)
    assert isinstance(step, Call)
    assert str(step.request.url).startswith("http://127.0.0.1:9000/x")
    assert "x//" not in str(step.request.url)
    with pytest.raises(ValueError, match="unknown URL name"):
        ADAPTERS[name]({"nonsense": "http://x"})


@pytest.mark.parametrize("name", NAMES)
def test_what_a_client_wrote_can_not_break_the_body(name):
    for prompt in ('quote " backslash \\ newline \r\n --boundary', "☆" * 500, "\ud800"):
        request = edit_request(prompt=prompt, images=(PNG,))
        if prompt == "\ud800" and name not in ("openai", "stability"):  # no JSON can hold it
            with pytest.raises(ProviderError) as raised:
                first_call(name, request)
            assert (raised.value.kind, raised.value.billed) == (ErrorKind.BAD_REQUEST, Billed.NO)
            continue
        body = first_call(name, request).request.read()
        if body[:1] in (b"{", b"["):
            assert prompt in str(orjson.loads(body)) or repr(prompt)[1:-1] in str(orjson.loads(body))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [401, 402, 429, 500, 502, 503])
def test_plain_statuses(name, status):
    failure = play(adapter(name).run(image_request(), where(name)), reply(b"", status, {"retry-after": "3"})).failure()
    kinds = {401: ErrorKind.AUTH, 402: ErrorKind.AUTH, 429: ErrorKind.RATE_LIMITED, 503: ErrorKind.RATE_LIMITED}
    assert failure.kind is kinds.get(status, ErrorKind.SERVER_ERROR)
    assert failure.retry_after_s == 3.0
    assert failure.status == status
    if status < 500:
        assert failure.billed is Billed.NO


def test_adapters_by_name_and_by_path():
    assert load_adapter("fal") is ADAPTERS["fal"]
    assert load_adapter("router.providers.fal:Fal") is ADAPTERS["fal"]
    for wrong in ("nope", "nope.nope:X", "router.providers.fal:Nope", "router.providers.fal:play", "json:JSONDecoder"):
        with pytest.raises(ValueError, match="adapter"):
            load_adapter(wrong)


# --- no answer of a provider may end in anything but a result or a ProviderError -------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["succeeded", "failed", "COMPLETED", "IN_QUEUE", "Ready", "Pending", "Task not found", "processing", "success",
         "https://x.example/y.png", "data:image/png;base64,AAAA", "AAAA", "data:,x", "http://[", "STOP", "IMAGE_SAFETY"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """The value with some part replaced by something else."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: draw(mutated(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(mutated(value[index])), *value[index + 1 :]]
    return draw(VALUES)


@st.composite
def broken(draw: st.DrawFn, name: str) -> list[httpx.Response]:
    """The answers of a good flow with one of them spoilt: its JSON, its bytes, its status or its headers."""
    good = answers_of(name)
    index = draw(st.integers(0, len(good) - 1))
    body = good[index].content
    how = draw(st.sampled_from(["json", "bytes", "cut", "empty"]))
    if how == "json":
        body = _encode(draw(mutated(orjson.loads(body))))
    elif how == "bytes":
        body = draw(st.binary(max_size=40))
    elif how == "cut":
        body = body[: draw(st.integers(0, len(body)))]
    elif how == "empty":
        body = b""
    status = draw(st.sampled_from([good[index].status_code, 200, 202, 302, 400, 403, 404, 422, 429, 500, 503, 504]))
    headers = draw(
        st.dictionaries(
            st.sampled_from(["retry-after", "x-fal-billable-units", "x-request-id", "x-fal-error-type", "date"]),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
            max_size=2,
        )
    )
    return [*good[:index], reply(body, status, headers), *good[index + 1 :]]


def _encode(value: Any) -> bytes:
    return orjson.dumps(value, default=str) if _fits(value) else str(value).encode()


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


def ending(flow: Flow, answers: list[httpx.Response]) -> ImageResult | ProviderError | None:
    """How the flow ends on these answers, the last of them repeated for a while; None if it goes on asking."""
    answer: Any = None
    position = 0
    try:
        while position < len(answers) + 30:
            step = flow.send(answer)
            answer = None
            if isinstance(step, Call):
                answer = answers[min(position, len(answers) - 1)]
                position += 1
            else:
                assert isinstance(step, Job | Read | Partial)
    except StopIteration as stop:
        result: ImageResult = stop.value
        return result
    except ProviderError as error:
        return error
    return None


AWKWARD: list[Any] = [None, True, 0, -1, 2**80, 1e300, "", "x", "\u2028", [], [[]], {}, {"a": []}, [{"error": {}}]]


def paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    yield ()
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from ((key, *rest) for rest in paths(part))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_every_answer_may_be_something_else(name):
    good = answers_of(name)
    for index, answer in enumerate(good):
        body = orjson.loads(answer.content)
        for path in paths(body):
            for new in AWKWARD:
                if new == 2**80:
                    spoilt = reply(json.dumps(replaced(body, path, new)).encode(), answer.status_code)
                else:
                    spoilt = reply(replaced(body, path, new), answer.status_code)
                end = ending(
                    adapter(name).run(image_request(), where(name)), [*good[:index], spoilt, *good[index + 1 :]]
                )
                assert end is None or isinstance(end, ImageResult | ProviderError), (path, new)


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_an_error_may_be_something_else(name):
    body = {
        "error": {"message": "x", "type": "y", "code": "z", "param": "size", "status": "INTERNAL", "details": [{}]},
        "errors": [{"code": "a", "message": "b", "parameter": "width"}],
        "detail": [{"loc": ["body", "width"], "msg": "c", "type": "d"}],
        "invalid_fields": [{"field": "input.x"}],
        "name": "bad_request",
        "code": "e",
        "message": "f",
    }
    for path in paths(body):
        for new in AWKWARD:
            content = json.dumps(replaced(body, path, new)).encode()
            for status in (400, 422, 503):
                failure = play(adapter(name).run(image_request(), where(name)), reply(content, status)).failure()
                assert failure.message.isprintable(), (path, new)


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_answers_end_in_a_result_or_a_provider_error(name):
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(answers=broken(name))
    def check(answers):
        end = ending(adapter(name).run(image_request(), where(name)), answers)
        if isinstance(end, ProviderError):
            assert isinstance(end.kind, ErrorKind)
            assert end.message
            assert end.message.isprintable()
            assert end.code is None or len(end.code) <= 80
        elif end is not None:
            assert end.images
            for image in end.images:
                assert (image.url is None) != (image.b64 is None)
                assert image.size is None or isinstance(image.size, ImageSize)
            assert all(number > 0 for number in end.tokens.values())
            assert end.reported is None or end.reported.amount >= 0

    check()


def test_spoilt_streams_end_in_a_result_or_a_provider_error():
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(pieces=st.lists(st.binary(max_size=30) | st.sampled_from([
        b"\n", b"\r\n", b"\n\n", b"data: ", b"event: image_generation.completed\n", b"data: {}\n\n", b"data: []\n\n",
        b'data: {"type":"image_generation.completed","b64_json":"AAAA"}\n\n', b'data: {"type":"error"}\n\n',
        b'data: {"type":"image_generation.partial_image","b64_json":7}\n\n', b'data: {"error":{"code":[]}}\n\n',
    ]), max_size=8))  # fmt: skip
    def check(pieces):
        streaming = where("openai", streams=True)
        flow = adapter("openai").run(image_request(stream=True, partial_images=1), streaming)
        answer: Any = None
        waiting = iter([piece for piece in pieces if piece])
        end: ImageResult | ProviderError | None = None
        while end is None:
            try:
                step = flow.send(answer)
            except StopIteration as stop:
                end = stop.value
            except ProviderError as error:
                end = error
            else:
                answer = next(waiting, b"") if isinstance(step, Read) else None
                if isinstance(step, Call):
                    answer = httpx.Response(200, headers={"content-type": "text/event-stream"})
        assert end.message if isinstance(end, ProviderError) else end.images

    check()


@pytest.mark.parametrize("name", NAMES)
def test_providers_without_jobs_say_so(name):
    jobs = play(adapter(name).run(image_request(), where(name)), *answers_of(name)).jobs
    if jobs:
        call = adapter(name).cancel(jobs[0])
        assert call is None or (not call.billable and call.request.method in ("PUT", "POST"))
    else:
        job = Job("x", {})
        assert adapter(name).cancel(job) is None
        if name != "runware":  # whose jobs are a matter of its settings
            failure = play(adapter(name).resume(job, None, where(name))).failure()
            assert failure.kind is ErrorKind.NO_ANSWER
