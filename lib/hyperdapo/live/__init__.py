"""How does a policy trade on messages as they come? On paper: no key, no order is sent, and each can be replayed."""
