"""The decision service (§4.7.2; docs/deploy.md): states in, orders out, over HTTP, by this process or by others."""
