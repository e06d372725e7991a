"""A run between sites: a coordinator at the server and a node at each client, whatever carries their messages."""
