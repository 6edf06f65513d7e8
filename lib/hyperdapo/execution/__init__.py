"""Event-driven replay of orders, what they cost, and the baseline strategies (§2.1.4, §3.5)."""
