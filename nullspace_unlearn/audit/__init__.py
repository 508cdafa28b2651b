"""What can still be recovered of what a model was made to forget, and what else it lost."""
