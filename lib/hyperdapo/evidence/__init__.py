"""From data frames to evidence: metrics with intervals, tests, figures, tables and thesis numbers (§3.4, §3.5.3)."""
