"""Collectives as schedules of links: their prices, their routes, and the proof of both."""
