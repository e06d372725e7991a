"""What keeps a client's data from who sees its messages: building blocks, pure and without torch."""
