"""Implementations of `chain_messages`, and the registry that chooses one."""
