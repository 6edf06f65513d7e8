"""Decisions that are taken again (eq. 2.7): what an order looks like then, what every action is worth, who decides."""
