"""Tasks: what a batch is, what its loss is, what a feature vector is. One file each."""
