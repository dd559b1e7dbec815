"""Which targets can serve a request, and why each of the others cannot."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any

from pricing import ImageSize
from router.errors import RequestError
from router.records import changed
from router.types import ImageRequest, Model, Operation, Shape, SizeRule, Successor, Target, Warn

VARIATION_PROMPT = "Create a variation of this image. Keep its subject, style and composition."


@dataclass(frozen=True, slots=True)
class Fit:
    """One target beside one request: None when it can serve it, else the code of what it lacks."""

    target: Target
    lacks: str | None
    size: ImageSize | None  # what it would be asked to make: another than the client asked where the policy allows it


class Catalog:
    """The models of an installation, under every name a client may use for them."""

    def __init__(
        self,
        models: Mapping[str, Model],
        names: Mapping[str, str],
        defaults: Mapping[Operation, str],
        successors: Mapping[str, Successor],
    ) -> None:
        self.models = models
        self.names = names
        self.defaults = defaults
        self.successors = successors

    def resolve(self, name: str, today: date) -> tuple[Model, str | None, tuple[Warn, ...]]:
        """The model behind a name, the provider it pins (``fal/flux.2-dev-turbo``), and what the client is told.

        From the day a model retires its names mean its successor. Raises RequestError 404.
        """
        provider, slash, rest = name.partition("/")
        slug = self.names.get(name)
        pinned = provider if slash and slug in (None, rest) else None
        named = self.names.get(rest, "") if slug is None and slash else slug or ""
        model = self.models.get(self._serving(named, today))
        if model is None or (pinned is not None and all(target.provider != pinned for target in model.targets)):
            raise RequestError(404, self._unknown(name), code="model_not_found", param="model")
        if model.slug == named:
            return model, pinned, ()
        told = f"{named} was retired on {self.successors[named].since}; {model.slug} serves its name."
        return model, pinned, (Warn("model_redirected", told, "model"),)

    def _serving(self, slug: str, today: date) -> str:
        """The model that serves this one's names on that day."""
        while (successor := self.successors.get(slug)) is not None and successor.since <= today:
            slug = successor.slug
        return slug

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"The model {name[:80]!r} does not exist or you do not have access to it.{hint}"

    def listed(self, today: date, allowed: Collection[str] = ()) -> list[dict[str, Any]]:
        """OpenAI model objects of every slug and alias, with what the catalogue knows beside OpenAI's four keys."""
        listed = []
        for name, slug in self.names.items():
            model = self.models.get(self._serving(slug, today))
            model = model and _pinned(name, slug, model)
            if model is not None and (not allowed or model.slug in allowed):
                listed.append(_described(name, model))
                if model.slug != slug:
                    since = self.successors[slug].since.isoformat()
                    listed[-1] |= {"status": "retired", "shutdown_date": since, "successor": model.slug}
        return listed

    def complete(self, asked: Shape, model: Model) -> tuple[Shape, tuple[Warn, ...]]:
        """What is asked with what the catalogue fills in where the client left it open, and what the client is told."""
        warnings: tuple[Warn, ...] = ()
        if asked.size is None and model.default_size is not None:
            # Nobody asked for these very pixels: another size is no failure.
            asked = asked._replace(size=model.default_size, size_policy=asked.size_policy or "nearest")
        elif asked.size_policy is None and model.size_policy != "exact":
            asked = asked._replace(size_policy=model.size_policy)
        if asked.operation is Operation.VARIATION and not asked.prompt:
            asked = asked._replace(prompt=len(VARIATION_PROMPT))
            told = "No provider varies pictures any more: this is an edit with a prompt of the router's."
            warnings = (Warn("variation_emulated", told),)
        return asked, warnings

    def fits(self, asked: Shape, model: Model, pinned: str | None) -> tuple[Fit, ...]:
        """Every target of the model with what it lacks."""
        return tuple(_fit(asked, target) for target in model.targets if pinned is None or target.provider == pinned)


def completed(request: ImageRequest, asked: Shape) -> ImageRequest:
    """The request with what ``Catalog.complete`` filled in."""
    prompt = request.prompt or (VARIATION_PROMPT if request.operation is Operation.VARIATION else "")
    if asked.size == request.size and asked.size_policy == request.size_policy and prompt == request.prompt:
        return request
    return changed(request, size=asked.size, size_policy=asked.size_policy, prompt=prompt)


def _fit(asked: Shape, target: Target) -> Fit:
    size, lacks = asked.size, _lacks(asked, target)
    if lacks is None and size is not None and not target.sizes.accepts(size):
        size = _SUBSTITUTES[asked.size_policy or "exact"](target.sizes, size)
        lacks = "size" if size is None else None
    return Fit(target, lacks, size)


_SUBSTITUTES: Mapping[str, Callable[[SizeRule, ImageSize], ImageSize | None]] = {
    "exact": lambda rule, size: None,
    "nearest": SizeRule.nearest,
    "fit": SizeRule.covering,
}
"""What a target is asked for, by size policy, where it does not make the size that the client asked for."""


def _lacks(asked: Shape, target: Target) -> str | None:
    """What it lacks beside the size."""
    if asked.operation not in target.endpoints:
        return "operation"
    if len(asked.inputs) > target.max_inputs and asked.operation is not Operation.GENERATE:
        return "inputs"
    if asked.prompt > target.max_prompt:
        return "prompt"
    if asked.mask and not target.mask:
        return "mask"
    if asked.markup and not target.markup:
        return "markup"
    if asked.background == "transparent" and not target.transparent:
        return "background"
    return None


# The narrowest reason comes last: a request that fails only for its size is told about its size.
_ORDER = ("operation", "inputs", "prompt", "mask", "markup", "background", "size")


def infeasible(asked: Shape, model: Model, fits: tuple[Fit, ...]) -> RequestError:
    """What to tell the client when none of these can serve: a 400 that names the field."""
    lacks = max((fit.lacks for fit in fits if fit.lacks), key=_ORDER.index, default="operation")
    targets = [fit.target for fit in fits if fit.lacks == lacks]
    if lacks == "size":
        offered = "; ".join(sorted({str(target.sizes) for target in targets}))
        hint = "; size_policy 'nearest' takes what is closest" if asked.size_policy in (None, "exact") else ""
        return RequestError(
            400,
            f"The size {asked.size} is not supported by {model.slug}. Supported: {offered}{hint}.",
            code="invalid_value",
            param="size",
        )
    if lacks == "inputs":
        most = max(target.max_inputs for target in targets)
        return RequestError(
            400,
            f"{model.slug} takes at most {most} input image{'s' if most != 1 else ''}, got {len(asked.inputs)}.",
            code="array_above_max_length",
            param="image",
        )
    if lacks == "prompt":
        most = max(target.max_prompt for target in targets)
        return RequestError(
            400,
            f"{model.slug} takes prompts of at most {most} characters, got {asked.prompt}.",
            code="string_above_max_length",
            param="prompt",
        )
    if lacks in ("mask", "markup"):
        return RequestError(400, f"{model.slug} takes no {lacks}.", code="unsupported_parameter", param=lacks)
    if lacks == "background":
        return RequestError(
            400,
            f"{model.slug} cannot make transparent backgrounds.",
            code="unsupported_parameter",
            param="background",
        )
    words = {Operation.GENERATE: "generate images", Operation.EDIT: "edit images", Operation.VARIATION: "vary images"}
    return RequestError(
        400,
        f"The model {model.slug} cannot {words[asked.operation]}.",
        code="unsupported_model",
        param="model",
    )


_EPOCH_OF_IMAGES = 1_609_459_200  # 2021-01-01: models without a release date need some integer


def _pinned(name: str, slug: str, model: Model) -> Model | None:
    """The model as its name reaches it: of ``provider/model`` only what that provider does; None if it does nothing."""
    if not name.endswith(f"/{slug}"):
        return model
    provider = name.removesuffix(f"/{slug}")
    targets = tuple(target for target in model.targets if target.provider == provider)
    return replace(model, targets=targets) if targets else None


def _described(name: str, model: Model) -> dict[str, Any]:
    released = datetime.combine(model.released, time(), UTC).timestamp() if model.released else _EPOCH_OF_IMAGES
    edits = any(operation is not Operation.GENERATE for operation in model.operations)
    largest = max((target.sizes.largest for target in model.targets), key=lambda size: size.pixels)
    body: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(released),
        "owned_by": model.creator,
        "name": model.name,
        "status": model.status,
        "operations": [operation.value for operation in model.operations],
        "modalities": {"input": ["text", "image"] if edits else ["text"], "output": ["image"]},
        "providers": [target.provider for target in model.targets],
        "provider_models": {
            target.provider: {operation.value: name for operation, name in target.endpoints.items()}
            for target in model.targets
        },
        "max_resolution": str(largest),
        "max_input_images": max(target.max_inputs for target in model.targets),
        "output_formats": sorted({form for target in model.targets for form in target.formats}),
        "sizes": sorted({str(target.sizes) for target in model.targets}),
        "tags": list(model.tags),
        "provider_tags": {target.provider: list(target.tags) for target in model.targets if target.tags},
        "fallbacks": list(model.fallbacks),
        "aliases": list(model.aliases),
        "shutdown_date": model.retires.isoformat() if model.retires else None,
        "successor": model.successor,
    }
    if name != model.slug:
        body["slug"] = model.slug
    for key, value in (("family", model.family), ("licence", model.licence), ("description", model.description)):
        if value is not None:
            body[key] = value
    return body
