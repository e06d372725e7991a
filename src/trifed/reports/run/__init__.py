"""Reports on one run: reading its folder, showing it while it runs, its tables and its picture."""
