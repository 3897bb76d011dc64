"""The transfers of each collective algorithm as tables; entry: `cost.link_schedule`."""
