"""Images: folders on disk, and the pictures the bundled model knows."""
