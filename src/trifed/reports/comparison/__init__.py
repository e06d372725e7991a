"""Reports on methods side by side: a verdict, tables and plots. A run with its baselines is one of these."""
