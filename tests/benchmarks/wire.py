"""HTTP/1.1 messages, read as cheaply as Python can: shared by the upstream and the load generator."""

from __future__ import annotations

END = b"\r\n\r\n"


class Messages:
    """Finds where one message ends. Feed it bytes; it answers with the complete ones, and keeps no body it may skip.

    Understands Content-Length and chunked bodies, as both occur. ``keep`` bounds how much of a body is kept: what a
    benchmark wants to look at is in the first kilobytes, and holding the rest would cost more than the proxy.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._head = b""
        self._body = b""
        self._length = 0
        self._left = -1  # bytes of the body to come; -1: in the head; -2: chunked

    def feed(self, data: bytes) -> list[tuple[bytes, bytes, int]]:
        """(head, first bytes of the body, length of the body) of every message that ended in ``data``."""
        done: list[tuple[bytes, bytes, int]] = []
        while data or self._left == 0:
            if self._left == -1:
                self._head += data
                end = self._head.find(END)
                if end < 0:
                    return done
                data = self._head[end + 4 :]
                self._head = self._head[:end]
                self._body, self._length, self._left = b"", 0, self._expected(self._head.lower())
            if self._left == -2:
                data = self._chunked(data)
                if self._left == -2:
                    return done
            if self._left > 0:
                taken = min(len(data), self._left)
                if len(self._body) < self._keep:
                    self._body += data[: min(taken, self._keep)]
                self._length += taken
                self._left -= taken
                data = data[taken:] if taken < len(data) else b""
            if self._left == 0:
                done.append((self._head, self._body, self._length))
                self._head, self._left = b"", -1
        return done

    def _expected(self, head: bytes) -> int:
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            line = head[at + 17 :].partition(b"\r\n")[0]
            return int(line)
        self._chunks = b""
        return -2 if b"\r\ntransfer-encoding: chunked" in head else 0

    def _chunked(self, data: bytes) -> bytes:
        """Chunked bodies are rare here and small: gathered whole, then taken apart."""
        self._chunks += data
        rest, body = self._chunks, []
        while True:
            size, found, rest = rest.partition(b"\r\n")
            if not found:
                return b""
            length = int(size, 16)
            if len(rest) < length + 2:
                return b""
            if length == 0:
                break
            body.append(rest[:length])
            rest = rest[length + 2 :]
        whole = b"".join(body)
        self._body, self._length, self._left = whole[: self._keep], len(whole), 0
        return rest[2:]
