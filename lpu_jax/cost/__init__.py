"""Time and placement read from a program: link schedules, unit schedules, reports."""
