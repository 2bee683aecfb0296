"""What an operator chooses: address, keys, limits."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of `planish serve` that concern HTTP.

    keys              API keys as bytes; none: no key is asked for
    queue             requests that may wait while `slots` are answered
    max_body          bytes of a request's body
    allowed_origins   of browser pages that may call, or "*"
    allowed_hosts     names in the Host header, beside addresses and localhost
    timeout           seconds that a client may take to send its body or to read its answer
    metrics           whether /metrics is served
    log_requests      whether bodies, and so prompts, are logged
    """

    keys: tuple[bytes, ...] = field(default=(), repr=False)
    queue: int = 64
    max_body: int = 8 * MIB
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    timeout: float = 600.0
    metrics: bool = False
    log_requests: bool = False
