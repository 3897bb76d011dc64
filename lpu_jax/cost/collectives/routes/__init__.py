"""What tables of transfers are made of, and those of `flat3`; entry: `link_schedule`."""
