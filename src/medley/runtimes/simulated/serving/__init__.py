"""The serving of a split model under the virtual clock: front and stages of production, all else a model of it."""
