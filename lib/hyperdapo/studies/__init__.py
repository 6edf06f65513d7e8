"""What is asked of a run beside its stages: its hypotheses on another span, and what language is for."""
