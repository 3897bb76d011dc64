"""One plan in full: its schedule, its memory map, its links, its pictures."""
