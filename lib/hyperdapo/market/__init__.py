"""Tick data: Tardis replay, native messages, the book at any instant, the 15 features, the synthetic exchange."""
