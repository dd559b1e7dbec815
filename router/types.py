"""The values that travel through the router. All are immutable; none does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from enum import StrEnum
from math import ceil, isqrt, log, sqrt
from typing import Any, NamedTuple

from pricing import ImageSize, Reported
from router.blob import Blob
from router.records import record


class Operation(StrEnum):
    """What a request does. The words are the label values of the metrics."""

    GENERATE = "generate"
    EDIT = "edit"
    VARIATION = "variation"


SIZE_POLICIES = ("exact", "nearest", "fit")
"""What may be done where a target does not make the size asked for.

``exact``: it is not used. ``nearest``: it makes the size closest in shape, then in pixels, and the answer tells it.
``fit``: it makes one that is larger both ways, which the router scales and crops to the size asked for.
"""


ON_DISCONNECT = ("finish", "cancel")
"""What becomes of work at a provider when the client that waits for it leaves.

``finish``: it goes on, for it is paid all the same, and its result can be asked for. ``cancel``: it is stopped.
"""


@record
class InputImage:
    """A picture that came in: its bytes as sent, and what its header says (None where unreadable)."""

    data: Blob
    format: str | None  # png, jpeg, webp, gif, ...; found from the bytes
    size: ImageSize | None

    @property
    def media_type(self) -> str:
        return f"image/{self.format}" if self.format else "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Preferences:
    """What is wanted of how a request is served: by itself (body or headers), its client key, or its model's entry."""

    sort: str | None = None  # balanced, fastest, cheapest, reliable, weighted, priority
    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    max_cost: Decimal | None = None  # in the reporting currency, for the whole request
    max_latency_s: float | None = None
    min_success: float | None = None
    require_tags: tuple[str, ...] = ()  # all of these: region:eu
    exclude_tags: tuple[str, ...] = ()  # none of these: non-commercial
    allow_fallbacks: bool = True
    on_disconnect: str | None = None  # one of ON_DISCONNECT

    @property
    def constrains(self) -> bool:
        """Whether anything is ruled out (an order and a sort rule nothing out)."""
        return self is not NO_PREFERENCES and bool(
            self.only
            or self.ignore
            or self.max_cost is not None
            or self.max_latency_s is not None
            or self.min_success is not None
            or self.require_tags
            or self.exclude_tags
            or not self.allow_fallbacks
        )

    def within(self, outer: Preferences) -> Preferences:
        """These, with what they leave open taken from ``outer``; its constraints hold beside them, and stay there."""
        if outer is NO_PREFERENCES:
            return self
        return replace(
            self,
            sort=self.sort or outer.sort,
            order=self.order or outer.order,
            allow_fallbacks=self.allow_fallbacks and outer.allow_fallbacks,
            on_disconnect=self.on_disconnect or outer.on_disconnect,
        )


NO_PREFERENCES = Preferences()


class Shape(NamedTuple):
    """What decides who can serve a request and what each would charge for it: all of it but its content.

    Requests come in few shapes, so that whatever follows from one is worked out once.
    """

    operation: Operation
    model: str
    n: int
    size: ImageSize | None
    size_policy: str | None
    quality: str | None
    background: str | None
    inputs: tuple[ImageSize | None, ...]  # of the source pictures
    mask: bool
    markup: bool
    stream: bool
    partial_images: int
    extra: tuple[tuple[str, str | int | None], ...]  # those of the fields that a price may depend on
    models: tuple[str, ...] | None
    preferences: Preferences
    prompt: int  # characters


PRICED_WORDS = ("resolution", "rendering_speed", "acceleration", "guidance_scale")
PRICED_STEPS = ("num_inference_steps", "steps")
_PRICED = frozenset((*PRICED_WORDS, *PRICED_STEPS))


@record
class ImageRequest:
    """A client's request, parsed once and never changed. None means the client left it to the model."""

    operation: Operation
    model: str
    prompt: str
    n: int = 1
    size: ImageSize | None = None  # None: auto
    size_policy: str | None = None  # exact, nearest, fit: where a target does not make the size; None: the model's
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    moderation: str | None = None
    style: str | None = None
    input_fidelity: str | None = None
    seed: int | None = None
    response_format: str | None = None  # url, b64_json; None: the default of model and operation
    images: tuple[InputImage, ...] = ()
    mask: InputImage | None = None
    markup: InputImage | None = None  # drawn over the first image to guide the edit
    stream: bool = False
    partial_images: int = 0
    user: str | None = None
    extra: Mapping[str, Any] = field(
        default_factory=dict
    )  # fields that are not OpenAI's, offered to the adapter as they came
    models: tuple[str, ...] | None = None  # whom to ask if ``model`` cannot serve it, in order; None: as configured
    preferences: Preferences = NO_PREFERENCES
    deadline_s: float | None = None  # how long the client is going to wait, where it says so
    warnings: tuple[Warn, ...] = ()  # what reading the request already dropped or converted
    later: bool = False  # the client does not wait: it will ask for the result, or be called at webhook_url
    webhook_url: str | None = None

    @property
    def shape(self) -> Shape:
        images, extra = self.images, self.extra
        return Shape(
            self.operation,
            self.model,
            self.n,
            self.size,
            self.size_policy,
            self.quality,
            self.background,
            tuple([image.size for image in images]) if images else (),
            self.mask is not None,
            self.markup is not None,
            self.stream,
            self.partial_images,
            tuple([(name, _word(extra[name])) for name in extra if name in _PRICED]) if extra else (),
            self.models,
            self.preferences,
            len(self.prompt),
        )


def _word(value: Any) -> str | int | None:
    return value if value is None or type(value) is int else str(value)


@record
class Caller:
    """Who asks: the client key's public name and whom to charge. Never holds the key itself."""

    key: str = "anonymous"
    team: str | None = None
    project: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()  # slugs it may use; empty: all
    preferences: Preferences = NO_PREFERENCES  # hold for all its requests, which may narrow them
    retry_count: int = 0  # x-stainless-retry-count: how often the client's SDK has re-sent this


MAX_PROMPT = 32_000
"""Characters of the longest prompt that any request may have."""


def distance(size: ImageSize, other: ImageSize) -> tuple[float, float]:
    """How far another size is from this one: by shape, then by pixels. Both are symmetric factors, as logarithms."""
    shape = abs(log(size.width * other.height / (size.height * other.width)))
    return round(shape, 6), abs(log(size.pixels / other.pixels))


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Which output sizes a target makes exactly. Empty ``fixed`` means any size inside the bounds."""

    fixed: tuple[ImageSize, ...] = ()
    min_side: int = 1
    max_side: int = 16384
    multiple_of: int = 1
    min_pixels: int = 1
    max_pixels: int = 2**31
    max_ratio: float | None = None  # longer side / shorter side

    def accepts(self, size: ImageSize) -> bool:
        if self.fixed:
            return size in self.fixed
        short, long = sorted((size.width, size.height))
        return (
            self.min_side <= short
            and long <= self.max_side
            and size.width % self.multiple_of == 0
            and size.height % self.multiple_of == 0
            and self.min_pixels <= size.pixels <= self.max_pixels
            and (self.max_ratio is None or long <= self.max_ratio * short)
        )

    def nearest(self, size: ImageSize) -> ImageSize | None:
        """The size it makes that is closest in shape, then in pixels; None if the bounds leave none near it."""
        if self.fixed:
            return min(self.fixed, key=lambda other: distance(size, other))
        ratio = size.width / size.height
        most = min(self.max_ratio or self.max_side, self.max_side / self.min_side)
        ratio = min(max(ratio, 1 / most), most)
        long, short = max(ratio, 1 / ratio), 1.0  # the shape with a short side of one pixel
        low = max(self.min_side, sqrt(self.min_pixels / long))
        high = min(self.max_side / long, sqrt(self.max_pixels / long))
        scale = max(min(sqrt(size.pixels / long), high), low)
        sides = (long * scale, short * scale)
        width, height = sides if ratio >= 1 else sides[::-1]
        near = [ImageSize(w, h) for w in self._steps(width) for h in self._steps(height)]
        return min(filter(self.accepts, near), key=lambda other: distance(size, other), default=None)

    def covering(self, size: ImageSize) -> ImageSize | None:
        """The size it makes that ``size`` can be cut from with the least thrown away; None if all are too small."""
        if self.fixed:
            large = [other for other in self.fixed if other.width >= size.width and other.height >= size.height]
            return min(large, key=lambda other: distance(size, other), default=None)
        width, height = max(size.width, self.min_side), max(size.height, self.min_side)
        if self.max_ratio is not None:
            width, height = max(width, ceil(height / self.max_ratio)), max(height, ceil(width / self.max_ratio))
        grow = max(1.0, sqrt(self.min_pixels / (width * height)))
        step = self.multiple_of
        found = ImageSize(ceil(width * grow / step) * step, ceil(height * grow / step) * step)
        return found if self.accepts(found) else None

    def _steps(self, side: float) -> tuple[int, ...]:
        """The lengths around this one that the rule's multiple allows."""
        below = int(side) // self.multiple_of * self.multiple_of
        return tuple(length for length in (below, below + self.multiple_of) if length > 0)

    @property
    def largest(self) -> ImageSize:
        """The fixed size with the most pixels, else the largest square inside the bounds."""
        if self.fixed:
            return max(self.fixed, key=lambda size: size.pixels)
        side = min(self.max_side, isqrt(self.max_pixels)) // self.multiple_of * self.multiple_of
        return ImageSize(side, side)

    def __str__(self) -> str:
        if self.fixed:
            return ", ".join(str(size) for size in self.fixed)
        text = f"{self.min_side} to {self.max_side} px per side"
        if self.multiple_of > 1:
            text += f", multiples of {self.multiple_of}"
        return text


@dataclass(frozen=True, slots=True)
class Target:
    """One provider serving one model. ``key`` is ``provider/model`` and may be used as the request's model."""

    key: str
    provider: str
    model: str
    endpoints: Mapping[Operation, str]  # the provider's own model id, per operation
    max_images: int = 1  # pictures one call can make; more are made by several calls
    max_inputs: int = 0
    max_prompt: int = MAX_PROMPT  # characters
    sizes: SizeRule = SizeRule()
    default_size: ImageSize | None = None  # what the provider makes when no size is sent
    formats: tuple[str, ...] = ("png",)  # output formats the provider can make
    mask: bool = False
    mask_rule: str = "alpha"  # where its mask is to be edited: alpha (transparent, as clients send it), white, black
    markup: bool = False
    transparent: bool = False
    streams: bool = False  # has real partial pictures
    qualities: Mapping[str, str] = field(
        default_factory=dict
    )  # our quality word -> the provider's; empty: not a parameter
    options: Mapping[str, Any] = field(default_factory=dict)  # sent with every call, below what the client says
    attributes: Mapping[str, str] = field(default_factory=dict)  # words its price depends on when the request has none
    sku: str | None = None  # its entry in the price book, where that is not the endpoint's id
    tags: tuple[str, ...] = ()  # its own, its provider's and its model's: region:eu, non-commercial

    def price_key(self, operation: Operation) -> str:
        """The name of this endpoint's entry in the provider's price book."""
        return self.sku or self.endpoints[operation]


@dataclass(frozen=True, slots=True)
class Provider:
    """One company or host that runs models, and how this installation reaches it."""

    name: str
    title: str  # for people: "fal.ai"
    adapter: str  # a name in router.providers.ADAPTERS, or a dotted path
    urls: Mapping[str, str]  # base URLs by the adapter's names
    key: str | None = field(default=None, repr=False)  # the secret itself; never leaves the transport
    prices: str = ""  # name of its price book
    result_hosts: tuple[str, ...] = ()  # hosts its pictures may come from, beside its own; "*.fal.media" allowed
    concurrency: int | None = None  # calls it takes at once, when known
    timeout_s: float = 120.0  # for one attempt
    max_prompt: int = MAX_PROMPT  # characters that its models take, unless a target says otherwise
    billing: Mapping[str, str] = field(default_factory=dict)  # ErrorKind -> Billed: what failures cost here
    tags: tuple[str, ...] = ()  # of all its targets: where data is processed, on which terms
    auth: tuple[str, str] | None = None  # header and prefix of the key, where not the adapter's (Azure: api-key, "")


@dataclass(frozen=True, slots=True)
class Successor:
    """The model that serves another one's names from the day ``since`` (UTC)."""

    slug: str
    since: date


@dataclass(frozen=True, slots=True)
class Model:
    """A public model of the catalogue and the targets that serve it, in the operator's order."""

    slug: str
    name: str
    creator: str
    targets: tuple[Target, ...]
    aliases: tuple[str, ...] = ()
    family: str | None = None
    status: str = "active"  # active, preview, deprecated
    released: date | None = None
    retires: date | None = None  # from this day on the successor serves the name
    successor: str | None = None
    licence: str | None = None
    tags: tuple[str, ...] = ()
    default_size: ImageSize | None = None  # used when the client names none; None: the provider chooses
    preferences: Preferences = NO_PREFERENCES  # hold for all requests of this model
    fallbacks: tuple[str, ...] = ()  # models that serve it when no target of this one can
    size_policy: str = "exact"  # exact, nearest, fit: what to do where a target does not make the size asked for
    undecodable_inputs: str = "reject"  # reject, forward: source pictures in formats that we do not read
    unpriced: str = "reject"  # reject, allow: what to do where no price is in force
    job_timeout_s: float | None = None  # for all attempts of a job together; None: the installation's
    description: str | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        offered = {operation for target in self.targets for operation in target.endpoints}
        return tuple(operation for operation in Operation if operation in offered)


@record
class GeneratedImage:
    """A picture that came out, in the form the provider delivered it: exactly one of data, b64, url is set.

    ``b64`` is kept as text so that a client that wants base64 gets it without decoding and encoding.
    """

    data: bytes | None = None
    b64: Blob | None = None
    plain: bool = False  # b64 was checked whole: standard base64, padded, and nothing else
    url: str | None = None
    size: ImageSize | None = None
    format: str | None = None
    revised_prompt: str | None = None

    def measured(self, size: ImageSize, format: str) -> GeneratedImage:
        """The same picture with what its own header says of it."""
        return GeneratedImage(self.data, self.b64, self.plain, self.url, size, format, self.revised_prompt)

    def linked(self, url: str | None) -> GeneratedImage:
        """What is left of it without its bytes."""
        return GeneratedImage(None, None, False, url, self.size, self.format, self.revised_prompt)


@record
class Warn:
    """Something dropped, converted or emulated on the way. ``code`` is for machines."""

    code: str
    message: str
    param: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "param": self.param}


@record
class ImageResult:
    """What a flow returns: pictures, and everything the provider said that money or the client needs."""

    images: tuple[GeneratedImage, ...]
    tokens: Mapping[str, int] = field(default_factory=dict)  # keyed as pricing.Usage.tokens
    usage: Mapping[str, Any] | None = None  # OpenAI's usage object, when the provider sent a complete one
    reported: Reported | None = None
    seconds: Decimal | None = None  # billed compute time the provider reported
    queue_s: float | None = None
    quality: str | None = None
    background: str | None = None
    seed: int | None = None
    provider_request_id: str | None = None
    warnings: tuple[Warn, ...] = ()


@record
class AttemptSummary:
    """One attempt as the client may see it."""

    provider: str
    target: str
    outcome: str
    latency_ms: int
    cost_nanos: int
    billed: str  # no, yes, maybe
    reason: str  # why this target was chosen
    error: str | None = None
    role: str = "first"  # first, retry, failover, rescue


@record
class Completed:
    """A finished request: what the client gets, and what it cost."""

    request_id: str
    created: int  # Unix seconds
    operation: Operation
    model: str  # as the client wrote it
    executed_model: str  # provider/model
    provider: str
    provider_name: str
    images: tuple[GeneratedImage, ...]
    response_format: str  # url, b64_json or both: what each item must carry
    cost_nanos: int
    currency: str
    items: tuple[Mapping[str, Any], ...]  # line items, JSON-ready
    attempts: tuple[AttemptSummary, ...]
    reason: str  # why the delivering target was chosen
    basis: str = "measured"
    output_format: str | None = None
    size: ImageSize | None = None
    quality: str | None = None
    background: str | None = None
    seed: int | None = None
    usage: Mapping[str, Any] | None = None
    warnings: tuple[Warn, ...] = ()
    routing: Mapping[str, Any] | None = None  # the decision record, when asked for
    input_pixels: int = 0
    output_pixels: int = 0
    provider_s: float = 0.0  # time spent waiting for providers; the rest of the duration is ours


@record
class Accepted:
    """Streaming: validation and routing are done and a provider has taken the work; a status may be committed."""


@record
class PartialImage:
    """Streaming: a real partial picture from the provider."""

    image: GeneratedImage
    index: int
