"""The values of metrics of this process."""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase


def value(metric: MetricWrapperBase) -> float:
    """The value of a metric without labels, or of one combination of them."""
    (family,) = metric.collect()
    return next(sample.value for sample in family.samples if not sample.name.endswith("_created"))
