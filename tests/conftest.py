"""What all tests share: the machine they run on must not change what they find."""

import os
import re

import pytest

# Proxies, certificates, provider keys and settings of whoever runs the tests. Removed once, here, so that session
# fixtures and the processes that tests start are clean as well.
_FOREIGN = re.compile(
    r"(?i)(https?|all|no|ftp)_proxy|ssl_cert_(file|dir)|requests_ca_bundle|curl_ca_bundle|ssl(key)?logfile"
    r"|pixelroute_.*|openai_.*|(gpu_fast|gpu_spot)_.*|\w+_(api_)?key|\w+_api_token|no_color|force_color|columns"
)
for _name in [name for name in os.environ if _FOREIGN.fullmatch(name)]:
    del os.environ[_name]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Cases of bytes are named by their length: compressed ones differ from second to second, and with them the tests
    that the processes of one run would collect.
    """
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None
