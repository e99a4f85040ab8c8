"""The OTLP sink: every ended job as a trace of OpenTelemetry."""
