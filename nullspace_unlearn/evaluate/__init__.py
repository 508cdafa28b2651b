"""Features of images, zero-shot accuracy on them, and what a request made of it."""
