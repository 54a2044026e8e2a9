"""What a trained model is measured by, a file for each metric."""
