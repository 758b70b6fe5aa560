"""Float networks, in torch."""
