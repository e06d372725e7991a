"""Sealed sums: rounds in which the server sees the sum over a group of clients, and no client's numbers."""
