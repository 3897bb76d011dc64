"""The machine as data: chips, links, systems, and where their numbers come from."""
