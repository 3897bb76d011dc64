"""The time reading: from a jaxpr to cycles, by unit and by link."""

from .report import Report, time

__all__ = ["Report", "time"]
