"""Metrics for Prometheus. One registry per application, no globals. No label ever holds an id or a URL."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from receiver.runtime.logs import dropped_lines

_ACK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_AGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The instruments, named by what they measure."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.callbacks = Counter(
            "receiver_callbacks", "Callbacks by what was answered.", ["provider", "verdict"], registry=r
        )
        self.ack_seconds = Histogram(
            "receiver_callback_ack_seconds",
            "From the first byte of a callback to its durable answer.",
            ["provider"],
            buckets=_ACK_BUCKETS,
            registry=r,
        )
        self.ack_limit = Gauge(
            "receiver_callback_timeout_seconds",
            "How long the provider documents to wait for that answer.",
            ["provider"],
            registry=r,
        )
        self.settle_seconds = Histogram(
            "receiver_callback_settle_seconds",
            "From the receipt of a callback to its settled job.",
            buckets=_AGE_BUCKETS,
            registry=r,
        )
        self.job_events = Counter("receiver_job_events", "Events of jobs.", ["provider", "type"], registry=r)
        self.settled = Counter(
            "receiver_jobs_settled", "Finished jobs by the channel of the update.", ["provider", "by"], registry=r
        )
        self.submits = Counter("receiver_submits", "Submit calls by outcome.", ["provider", "outcome"], registry=r)
        self.polls = Counter("receiver_polls", "Status calls by outcome.", ["provider", "outcome"], registry=r)
        self.deliveries = Counter(
            "receiver_delivery_attempts", "Delivery attempts by outcome.", ["outcome"], registry=r
        )
        self.delivery_wait = Histogram(
            "receiver_delivery_wait_seconds",
            "From a delivery's due moment to its attempt.",
            buckets=_AGE_BUCKETS,
            registry=r,
        )
        self.images = Counter("receiver_images", "Images by outcome.", ["outcome"], registry=r)
        self.refusals_dropped = Counter(
            "receiver_refused_callbacks_not_kept", "Refused callbacks beyond the bound on what is kept.", registry=r
        )
        self.jobs = Gauge("receiver_jobs", "Jobs that have not ended, by state.", ["provider", "state"], registry=r)
        self.oldest = Gauge(
            "receiver_oldest_seconds", "Age of the oldest thing that waits in a queue.", ["queue"], registry=r
        )
        self.waiting = Gauge("receiver_waiting", "Things that wait in a queue.", ["queue"], registry=r)
        self.overdue = Gauge("receiver_jobs_overdue", "Open jobs that are overdue.", registry=r)
        self.lost_callbacks = Gauge(
            "receiver_lost_callback_ratio",
            "Share of the last finished jobs that awaited a callback and were settled by a poll.",
            ["provider"],
            registry=r,
        )
        self.turnaround = Gauge(
            "receiver_turnaround_seconds", "Median from sending to the end, of the last jobs.", ["provider"], registry=r
        )
        self.spend = Gauge(
            "receiver_spend_today",
            "What today's jobs (UTC) cost, as the providers said.",
            ["provider", "unit"],
            registry=r,
        )
        r.register(_DroppedLines())
        self.loop_age = Gauge("receiver_loop_age_seconds", "Since a loop last began a step.", ["loop"], registry=r)


class _DroppedLines(Collector):
    """Reads the counter on collection: a line is dropped where nothing can be awaited."""

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "receiver_log_lines_dropped", "Lines that could not be written to standard error.", value=dropped_lines()
        )
