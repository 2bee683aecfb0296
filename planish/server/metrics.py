"""What /metrics counts, under vLLM's names, which dashboards know, with our prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from planish.server.runner import Runner

PREFIX = "planish:"
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass
class Metrics:
    """Counters and histograms of one server; each test has its own registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.new_tokens = self._counter("generation_tokens", "New tokens")
        self.queries = self._counter("prefix_cache_queries", "Tokens looked for in the cache")
        self.hits = self._counter("prefix_cache_hits", "Tokens found in the cache")
        self.guesses = self._counter("spec_decode_num_draft_tokens", "Tokens guessed by lookup")
        self.right = self._counter("spec_decode_num_accepted_tokens", "Guesses that were right")
        self.succeeded = self._counter("request_success", "Finished choices", ["finished_reason"])
        self.responses = self._counter("http_responses", "Answered HTTP requests", ["status"])
        first = "Seconds from a request to its first token"
        self.first_token = self._histogram("time_to_first_token_seconds", first, LONG)
        gap = "Seconds between two tokens of an answer"
        self.between_tokens = self._histogram("inter_token_latency_seconds", gap, SHORT)
        whole = "Seconds from a request to its last token"
        self.whole = self._histogram("e2e_request_latency_seconds", whole, LONG)

    def watch(self, runner: Runner) -> None:
        """Report what the runner knows of its session."""
        figures: dict[str, tuple[str, Callable[[], float]]] = {
            "num_requests_running": ("Choices that are answered", lambda: runner.stats.running),
            "num_requests_waiting": ("Choices that wait for a slot", lambda: runner.stats.waiting),
            "kv_cache_usage_perc": ("Used pages of the cache, 0..1", lambda: pages_used(runner)),
            "programs_compiled_while_serving_total": (
                "Programs for which a request had to wait",
                lambda: runner.stats.programs - runner.warm_programs,
            ),
        }
        for name, (words, read) in figures.items():
            Gauge(PREFIX + name, words, registry=self.registry).set_function(read)

    def write(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, words: str, labels: list[str] | None = None) -> Counter:
        return Counter(PREFIX + name, words, labels or [], registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, words, registry=self.registry, buckets=buckets)


def pages_used(runner: Runner) -> float:
    """The share of the cache's pages that running requests hold."""
    return runner.stats.pages_used / max(runner.stats.pages, 1)
