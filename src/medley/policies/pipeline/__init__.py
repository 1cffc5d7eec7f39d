"""Which machine holds which layers of a model that is served: descriptions in, a layout and its reasons out."""
