"""Causal language models: presets, tokenizers, loading, adapters, saving. Built on transformers and PEFT."""
