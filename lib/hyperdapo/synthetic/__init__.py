"""The exchange that we make: orders matched by price and time, sent as native messages; its truth is known."""
