"""The page at /: a chat in the browser, one static file.

Its policy lets the browser run this file's script and nothing else, and talk to this server only.

Source: https://www.w3.org/TR/CSP3/, section 6.7 (hashes of inline scripts and styles)
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).with_name("page.html")


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The file and its headers."""
    content = FILE.read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": hash_of(content, b"script"),
        "style-src": hash_of(content, b"style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return content, {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }


def hash_of(content: bytes, tag: bytes) -> str:
    """The source expression that allows the one element of this kind."""
    (inner,) = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner).digest()).decode()}'"


def show_page() -> Response:
    """GET /"""
    content, headers = page()
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)
