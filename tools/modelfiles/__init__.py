"""Model folders in the Hugging Face format: reading GGUF, writing config, weights and tokenizer, random models."""
