"""Goldens of the architectures that people use today."""

from __future__ import annotations

from variant import Variant

TODAY: dict[str, Variant] = {}
