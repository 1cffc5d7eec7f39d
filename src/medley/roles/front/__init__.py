"""The role that serves a model over pipelines of stages: requests, batches, layouts, the way back from every death."""
