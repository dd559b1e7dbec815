"""A small S3 server: what AWS documents of PutObject, GetObject, ListObjectsV2 and DeleteObjects, signatures included.

It shares no code with the client under test. Listings come two keys at a time, so that paging is exercised.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ACCESS, SECRET, REGION, BUCKET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG", "eu-central-1", "pictures"
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Stored:
    data: bytes
    content_type: str
    modified: float


@dataclass
class S3Server:
    """``objects`` is the bucket; ``failing`` makes every call a 503."""

    access: str = ACCESS
    secret: str = SECRET
    region: str = REGION
    objects: dict[str, Stored] = field(default_factory=dict)
    failing: bool = False
    calls: list[str] = field(default_factory=list)

    def app(self) -> Starlette:
        methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
        return Starlette(routes=[Route("/{path:path}", self.answer, methods=methods)])

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.calls.append(request.method)
        if self.failing:
            return error(503, "SlowDown")
        problem = self.check_signature(request.method, request.url.path, request.url.query, request.headers, body)
        if problem is not None:
            return error(403, problem)
        bucket, _, key = request.path_params["path"].partition("/")
        if bucket != BUCKET:
            return error(404, "NoSuchBucket")
        query = dict(request.query_params)
        if not key and "list-type" in query:
            return self.list(query)
        if not key and "delete" in query:
            return self.delete_many(body)
        if request.method == "PUT":
            if request.headers.get("if-none-match") == "*" and key in self.objects:
                return error(412, "PreconditionFailed")
            kind = request.headers.get("content-type", "binary/octet-stream")
            self.objects[key] = Stored(body, kind, time.time())
            return Response(headers={"ETag": etag(body)})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return Response(status_code=204)
        found = self.objects.get(key)
        if found is None:
            return error(404, "NoSuchKey")
        headers = {
            "ETag": etag(found.data),
            "Last-Modified": datetime.fromtimestamp(found.modified, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
            "Content-Length": str(len(found.data)),
        }
        content, status = b"" if request.method == "HEAD" else found.data, 200
        if content and (asked := RANGE.fullmatch(request.headers.get("range", ""))):
            first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
            headers["Content-Length"] = str(len(content))
        return Response(content, status, headers=headers, media_type=found.content_type)

    def list(self, query: dict[str, str]) -> Response:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        keys = [key for key in sorted(self.objects) if key.startswith(prefix) and key > after]
        page, more = keys[:2], len(keys) > 2
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key].data)}</Size>"
            f"<LastModified>{datetime.fromtimestamp(self.objects[key].modified, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
            f"</LastModified><ETag>{escape(etag(self.objects[key].data))}</ETag></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return xml(
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        )

    def delete_many(self, body: bytes) -> Response:
        deleted = ""
        for node in ElementTree.fromstring(body).iter():
            if node.tag.endswith("Key") and node.text is not None:
                self.objects.pop(node.text, None)
                deleted += f"<Deleted><Key>{escape(node.text)}</Key></Deleted>"
        return xml(f"<DeleteResult>{deleted}</DeleteResult>")

    def check_signature(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> str | None:
        """Signature Version 4, as the S3 documentation describes it; the error code if it is wrong."""
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        if scheme != "AWS4-HMAC-SHA256":
            return "AccessDenied"
        parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        access, day, region, service, _ = parts["Credential"].split("/")
        if (access, region, service) != (self.access, self.region, "s3"):
            return "InvalidAccessKeyId"
        sent = headers["x-amz-content-sha256"]
        if sent not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            return "XAmzContentSHA256Mismatch"
        names = parts["SignedHeaders"].split(";")
        if "host" not in names or any(name.startswith("x-amz-") and name not in names for name in headers):
            return "AccessDenied"
        pairs = sorted(parse_qsl(query, keep_blank_values=True))
        canonical = "\n".join(
            [
                method,
                quote(path, safe="/-_.~"),
                "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs),
                *(f"{name}:{' '.join(headers[name].split())}" for name in names),
                "",
                ";".join(names),
                sent,
            ]
        )
        stamp = headers["x-amz-date"]
        scope = f"{day}/{region}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self.secret}".encode()
        for step in (day, region, "s3", "aws4_request"):
            key = hmac.digest(key, step.encode(), "sha256")
        expected = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
        return None if hmac.compare_digest(expected, parts["Signature"]) else "SignatureDoesNotMatch"


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def xml(text: str) -> Response:
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>{text}', media_type="application/xml")


def error(status: int, code: str) -> Response:
    response = xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")
    response.status_code = status
    return response
