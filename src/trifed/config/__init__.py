"""Settings of a run: one validated model, from TOML and flags, and how mistakes in it are reported."""
