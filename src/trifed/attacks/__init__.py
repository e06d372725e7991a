"""Attacks on the messages of a configuration: they measure what a curious server could recover from them."""
