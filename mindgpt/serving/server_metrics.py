"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = {"registry": self.registry, "namespace": "mindgpt"}
        self.requests = Counter("requests", "Responses, by path and HTTP status.", ("path", "status"), **here)
        self.waiting = Gauge("requests_waiting", "Requests that wait for a place in the batch.", **here)
        self.running = Gauge("texts_running", "Texts that are being continued, each beam counted.", **here)
        self.connections = Gauge("connections", "Open connections.", **here)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts that were read.", **here)
        self.new_tokens = Counter("generated_tokens", "Tokens that were generated.", **here)
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, **here
        )
        self.time_per_token = Histogram(
            "time_per_output_token_seconds", "A step of the batch: one token of each text.", buckets=_STEPS, **here
        )
        self.request_seconds = Histogram(
            "request_seconds", "From a request for completions to its end.", buckets=_SECONDS, **here
        )

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)
