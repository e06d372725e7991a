"""Training and evaluation of models on one machine: one model or several clients at once, without messages."""
