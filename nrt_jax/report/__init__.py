"""The run's page: one HTML file with curves, traces and the confidences of the answer's tokens."""

from nrt_jax.report.page import MAX_TRACES, REPORT_FILE, render, write_report

__all__ = ["MAX_TRACES", "REPORT_FILE", "render", "write_report"]
