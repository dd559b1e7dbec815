"""What schemathesis may not take for a fault: loaded into its own process by ``test_openapi``."""

from __future__ import annotations

from typing import Any

import schemathesis

LISTS = ("image", "image[]")  # fields that a form may repeat


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """No form can carry a list of none or one: that is no part at all, or a part like any other."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return True
    return not any(isinstance(value, list) and len(value) < 2 for name, value in case.body.items() if name not in LISTS)
