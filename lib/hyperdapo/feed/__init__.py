"""What was received: Tardis replay, slices, native messages as columns, and their cleaning (§3.2.1, §4.2.1)."""
