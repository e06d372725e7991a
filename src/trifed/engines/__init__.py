"""Engines: what drives the rounds. The simulator runs all clients in this process."""
