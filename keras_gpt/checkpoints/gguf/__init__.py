"""GGUF, the format of llama.cpp: one file with weights, settings and tokenizer."""
