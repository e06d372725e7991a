"""The engine-neutral middle: messages, what a client and a server do in a round, and where a run is kept."""
