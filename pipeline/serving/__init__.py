"""Model servers: Triton model repositories, checks of their configuration, proof over the wire."""
