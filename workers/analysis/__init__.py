"""Jobs over stored images: what a collection knows of itself."""
