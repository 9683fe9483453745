"""Files: bases, checkpoints, results and predictions, each written whole or not at all."""
