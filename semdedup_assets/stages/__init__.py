"""The stages of the method, a file each, from source files to training manifests."""
