"""Commands beside `run`, one file each: `register(app)` adds it to the command line.

They read flags and show results; no logic.
"""
