"""The time reading: from a jaxpr to cycles, by unit and by link."""

from .time_report import Report, time

__all__ = ["Report", "time"]
